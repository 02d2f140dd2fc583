#!/bin/sh
# Starts Redis with two users and no others; their passwords are files named like the variables.
set -eu
secrets=${SECRETS_DIR:-/run/secrets/imece}
config=${CONFIG_DIR:-/etc/imece}
users=${USERS_FILE:-/tmp/users.acl}

# The password's hash as an ACL has it: the password itself goes into no file and no argument.
hash_of() {
  password=$(cat "$secrets/$1")
  case $password in
    '' | change-me)
      echo "$1 is not set: put a password of your own in deploy/redis/passwords.env and apply again," \
        "then delete this pod" >&2
      exit 2
      ;;
  esac
  printf '#%s' "$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)"
}
imece=$(hash_of IMECE_REDIS_PASSWORD)
keda=$(hash_of KEDA_REDIS_PASSWORD)

umask 077
cat >"$users" <<EOF
user default off
user imece on $imece ~imece:* ~rq:* &rq:pubsub:* -@all +@read +@write +@scripting +@transaction +@pubsub +@connection -@dangerous +info +time +acl|whoami
user keda on $keda ~rq:* -@all +ping +hello +auth +select +eval +type +llen +zcard
EOF

# A quarter of the memory is left for the rewriting of the append-only file and for buffers.
exec valkey-server "$config/redis.conf" --aclfile "$users" --maxmemory "$((MEMORY_LIMIT * 3 / 4))" "$@"
