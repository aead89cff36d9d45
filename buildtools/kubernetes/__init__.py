"""build.py soak --kubernetes: a Kubernetes built from source, three nodes of namespaces, the chart, upstream's storage suite, and kills."""
