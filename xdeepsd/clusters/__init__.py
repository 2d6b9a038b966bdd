"""Where it is computed: one context over Dask on this machine, on Dask Gateway and on Kubernetes.

``cluster`` is that context; ``local``, ``gateway`` and ``kubernetes`` start what it yields, each a thin layer over an
engine that exists. ``manifests`` holds the objects of Kubernetes as plain dicts, ``pods`` says why a pod does not run,
``versions`` compares what is installed on both sides. This part knows none of the networks and may import nothing of
the package but ``_extras``; dask-kubernetes and dask-gateway are imported when they are used.
"""
