"""Gate and pin: we choose the node, kube-scheduler judges it and binds.

On a real API server with kube-scheduler and the controllers that make pods and bind volumes; the
daemon has the rights of the base and of the components that the guide names for this, no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.applying import BASE, DEPLOY, apply, component, rendered
from support.kubernetes.client import MERGE, Client, Json, Reply
from support.kubernetes.deployment import Deployment, deployed
from support.kubernetes.ground import Ground
from support.kubernetes.real_server import (
    SERVICE_ACCOUNT,
    ControlPlane,
    NoControlPlaneError,
    control_plane,
)
from support.kubernetes.resources import NODES, PODS
from support.loops import run

pytestmark = pytest.mark.cluster

GATE = "haversack.dev/placement"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_COMPONENTS = ("admission", "preemption", "volumes", "resource-claims")
_CONTROLLERS = ("job-controller", "persistentvolume-binder-controller")
