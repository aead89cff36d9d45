{{- define "awsomefs.labels" -}}
app.kubernetes.io/name: awsomefs
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "awsomefs.selector" -}}
app.kubernetes.io/name: awsomefs
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "awsomefs.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "awsomefs.secret" -}}
{{ .Values.existingTokenSecret | default "awsomefs-token" }}
{{- end }}

{{- define "awsomefs.driver" -}}
csi.awsomefs.io
{{- end }}

{{- define "awsomefs.plugin" -}}
{{ .Values.kubeletDir }}/plugins/{{ include "awsomefs.driver" . }}
{{- end }}

{{- define "awsomefs.nodeLabels" -}}
{{- $pairs := list -}}
{{- range $key, $value := .Values.node.labels }}{{- $pairs = append $pairs (printf "%s=%s" $key $value) }}{{- end -}}
{{ join "," $pairs }}
{{- end }}

{{- define "awsomefs.probe" -}}
{{- if .root.Values.metrics.enabled -}}
httpGet: {path: {{ .path }}, port: metrics}
{{- else -}}
exec: {command: {{ .words | toJson }}}
{{- end -}}
{{- end -}}

{{- define "awsomefs.sidecar" -}}
- name: {{ .name }}
  image: {{ .image.repository }}:{{ .image.tag }}
  args:
    - --csi-address=/csi/csi.sock
    - --leader-election
    - --leader-election-namespace=$(NAMESPACE)
    - --timeout={{ .root.Values.controller.timeout }}
{{- range .args }}
    - {{ . }}
{{- end }}
  env:
    - name: NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
  securityContext:
    allowPrivilegeEscalation: false
    capabilities:
      drop: [ALL]
    readOnlyRootFilesystem: true
  resources: {{- toYaml .root.Values.controller.resources | nindent 4 }}
  volumeMounts:
    - name: plugin
      mountPath: /csi
{{- end }}
