"""The names that Kubernetes objects carry: ours, and those of others that we honour.

Sources: the public label and annotation references of Kubernetes,
kubernetes-sigs/scheduler-plugins, volcano-sh/volcano, kubernetes-sigs/jobset, kubernetes-sigs/lws,
kubeflow/training-operator, ray-project/kuberay, NVIDIA/k8s-device-plugin (GPU feature discovery),
and the clouds' own pages.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "haversack.dev/"

# Ours, on pods. QUEUE, GANG, JOB and ATTEMPT are labels, the others annotations.
QUEUE: Final = PREFIX + "queue"
GANG: Final = PREFIX + "gang"
JOB: Final = PREFIX + "job"
ATTEMPT: Final = PREFIX + "attempt"
GANG_SIZE: Final = PREFIX + "gang-size"
EPOCH: Final = PREFIX + "epoch"
GPUS: Final = PREFIX + "gpus"
TASKS: Final = PREFIX + "tasks"
"""How many pods the attempt has: by it a restarted daemon knows a whole gang."""
RANK: Final = PREFIX + "rank"
"""Which task of its attempt the pod is, from 0."""
MARKED: Final = PREFIX + "marked"
"""The uid of the pod that our marks were written on: a copy of the pod has another one."""
PATH: Final = PREFIX + "path"
"""Which way the pod took to its node, see `unmodelled.Path`, and why."""
TOPOLOGY: Final = PREFIX + "topology"
"""On a pod, how close its gang must be (`same-rack`); on a node, the agent's link matrix (JSON)."""

ONLY: Final = PREFIX + "only"
"""Taint of nodes that are kept for Haversack."""
EXIT_STATUS: Final = PREFIX + "exit-status"
"""Finalizer of pods that we make: they stay, and tell how they ended, until that is stored."""
JOB_NAME: Final = PREFIX + "job-name"
TENANT: Final = PREFIX + "tenant"
"""Labels of pods that we make: what the job is called, whose it is (names are DNS labels). The
tenant's is for network policies, too."""

ROLE: Final = PREFIX + "role"
LEADER: Final = "leader"
"""The role that a daemon's own pod has as its label while it leads."""

PLACEMENT_GATE: Final = PREFIX + "placement"
ADMISSION: Final = PREFIX + "admission"
"""On a namespace: `enabled` where pods that ask for GPUs get our gate when they are made."""
GPU_RESOURCE: Final = PREFIX + "gpu-resource"
"""Label that every node has in our model, never in the cluster: which resource its GPUs are."""

SCHEDULER_NAME: Final = "haversack"
KUBE_SCHEDULER_NAME: Final = "default-scheduler"

# Resources.
NVIDIA_GPU: Final = "nvidia.com/gpu"
AMD_GPU: Final = "amd.com/gpu"
GPU_RESOURCES: Final = (NVIDIA_GPU, AMD_GPU)
CPU: Final = "cpu"
MEMORY: Final = "memory"
PODS: Final = "pods"
HUGEPAGES: Final = "hugepages-"
ATTACHABLE_VOLUMES: Final = "attachable-volumes-"

# Kubernetes itself.
UNSCHEDULABLE_TAINT: Final = "node.kubernetes.io/unschedulable"
ZONE: Final = "topology.kubernetes.io/zone"
REGION: Final = "topology.kubernetes.io/region"
HOSTNAME: Final = "kubernetes.io/hostname"
COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
POD_INDEX: Final = "apps.kubernetes.io/pod-index"

# Gangs by others' conventions.
COSCHEDULING_GROUP: Final = "scheduling.x-k8s.io/pod-group"
VOLCANO_GROUPS: Final = ("scheduling.k8s.io/group-name", "scheduling.volcano.sh/group-name")
VOLCANO_MIN_MEMBER: Final = "scheduling.volcano.sh/group-min-member"
VOLCANO_INDEX: Final = "volcano.sh/task-index"
JOBSET_NAME: Final = "jobset.sigs.k8s.io/jobset-name"
JOBSET_REPLICATED_JOB: Final = "jobset.sigs.k8s.io/replicatedjob-name"
JOBSET_JOB_INDEX: Final = "jobset.sigs.k8s.io/job-global-index"
JOBSET_ATTEMPT: Final = "jobset.sigs.k8s.io/restart-attempt"
KUBEFLOW_JOB: Final = "training.kubeflow.org/job-name"
KUBEFLOW_REPLICA_TYPE: Final = "training.kubeflow.org/replica-type"
KUBEFLOW_INDEX: Final = "training.kubeflow.org/replica-index"
RAY_GANG: Final = "ray.io/gang-scheduling-enabled"
LWS_NAME: Final = "leaderworkerset.sigs.k8s.io/name"
LWS_GROUP: Final = "leaderworkerset.sigs.k8s.io/group-index"
LWS_INDEX: Final = "leaderworkerset.sigs.k8s.io/worker-index"
LWS_SIZE: Final = "leaderworkerset.sigs.k8s.io/size"

# GPU feature discovery and its kin, on nodes.
GPU_PRODUCT: Final = "nvidia.com/gpu.product"
GPU_MEMORY: Final = "nvidia.com/gpu.memory"
GPU_CLIQUE: Final = "nvidia.com/gpu.clique"
GPU_REPLICAS: Final = "nvidia.com/gpu.replicas"
GPU_SHARING: Final = "nvidia.com/gpu.sharing-strategy"
MIG_STRATEGY: Final = "nvidia.com/mig.strategy"
AMD_PRODUCT: Final = "amd.com/gpu.product-name"
AMD_MEMORY: Final = "amd.com/gpu.vram"

# How a node is paid for: label, and the value that means spot, on demand or reserved.
KARPENTER_CAPACITY: Final = "karpenter.sh/capacity-type"
EKS_CAPACITY: Final = "eks.amazonaws.com/capacityType"
GKE_SPOT: Final = "cloud.google.com/gke-spot"
AZURE_SCALE_SET: Final = "kubernetes.azure.com/scalesetpriority"
