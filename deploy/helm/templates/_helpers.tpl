{{- /* Where Redis is: yours, or that of the chart. KEDA asks from a namespace of its own. */ -}}
{{- define "imece.redisUrl" -}}
{{- if .Values.settings.IMECE_REDIS_URL -}}
{{ .Values.settings.IMECE_REDIS_URL }}
{{- else if .Values.redis.enabled -}}
redis://imece-redis.{{ .Release.Namespace }}.svc:6379/0
{{- else -}}
{{- fail "redis.enabled is false: set settings.IMECE_REDIS_URL to your own, as redis://redis.example.com:6379/0" -}}
{{- end -}}
{{- end -}}

{{- define "imece.redisAddress" -}}
{{ (include "imece.redisUrl" . | urlParse).host }}
{{- end -}}

{{- define "imece.redisDatabase" -}}
{{ (include "imece.redisUrl" . | urlParse).path | trimPrefix "/" | default "0" }}
{{- end -}}

{{- define "imece.redisTLS" -}}
{{ include "imece.redisUrl" . | hasPrefix "rediss://" }}
{{- end -}}

{{- define "imece.kedaNamespace" -}}
{{ .Values.keda.namespace | default (ternary "openshift-keda" "keda" .Values.openshift) }}
{{- end -}}

{{- /* The map of settings. toJson: a large number would else be printed as 1e+06. */ -}}
{{- define "imece.settings" -}}
{{- range $name, $value := .Values.settings }}
{{- if and (ne $name "IMECE_REDIS_URL") (not (kindIs "invalid" $value)) }}
{{ $name }}: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}
IMECE_REDIS_URL: {{ include "imece.redisUrl" . | quote }}
{{- end -}}
