{{/* Of what the sandbox service has on the cluster; cluster-wide, so the release is part of it. */}}
{{- define "holdfast.sandbox" -}}
{{- printf "%s-sandbox" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
