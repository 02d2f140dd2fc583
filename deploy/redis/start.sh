#!/bin/sh
# Starts Redis with two users for each pipeline, and no others. Their passwords are files named like
# the variables; those of the pipeline scans are IMECE_REDIS_PASSWORD_scans, KEDA_REDIS_PASSWORD_scans.
set -eu
secrets=${SECRETS_DIR:-/run/secrets/imece}
config=${CONFIG_DIR:-/etc/imece}
users=${USERS_FILE:-/tmp/users.acl}

# The password's hash as an ACL has it: the password itself goes into no file and no argument.
hash_of() {
  password=$(cat "$secrets/$1")
  case $password in
    '' | change-me)
      echo "$1 is not set: put a password of your own in $2" >&2
      exit 2
      ;;
  esac
  printf '#%s' "$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)"
}

# The users of a pipeline: its queue, how their names end, how the names of their passwords end, and
# where a password is to be put. Each has the keys of this queue, and no other's.
users_of() {
  imece=$(hash_of "IMECE_REDIS_PASSWORD$3" "$4") || exit
  keda=$(hash_of "KEDA_REDIS_PASSWORD$3" "$4") || exit
  cat <<EOF
user imece$2 on $imece ~imece:$1:* ~rq:queue:$1 ~rq:queue:$1:intermediate ~rq:wip:$1 ~rq:workers:$1 ~rq:worker:$1.* &rq:pubsub:$1.* ~rq:workers ~rq:queues -@all +@read +@write +@scripting +@transaction +@pubsub +@connection -@dangerous +info +time
user keda$2 on $keda ~rq:queue:$1 ~rq:queue:$1:intermediate ~rq:wip:$1 -@all +ping +hello +auth +select +eval +type +llen +zcard
EOF
}

rules=$(users_of "${QUEUE:-imece}" "" "" \
  "deploy/redis/passwords.env and apply again, then delete this pod")
for file in "$secrets"/IMECE_REDIS_PASSWORD_*; do
  [ -e "$file" ] || continue
  name=${file##*/IMECE_REDIS_PASSWORD_}
  # A pipeline whose password or name is wrong keeps no other from starting.
  case $name in
    *[!a-z0-9-]*) more='' ;;
    *) more=$(users_of "$name" "-$name" "_$name" "the Secret imece-redis") || more='' ;;
  esac
  if [ "$more" ]; then
    rules=$(printf '%s\n%s' "$rules" "$more")
  else
    echo "the pipeline $name gets no users" >&2
  fi
done

umask 077
printf 'user default off\n%s\n' "$rules" >"$users"

# A quarter of the memory is left for the rewriting of the append-only file and for buffers.
exec valkey-server "$config/redis.conf" --aclfile "$users" --maxmemory "$((MEMORY_LIMIT * 3 / 4))" "$@"
