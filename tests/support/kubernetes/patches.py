"""The three forms of PATCH: merge (RFC 7386), JSON (RFC 6902) and Kubernetes' strategic merge."""

from __future__ import annotations

import copy
from typing import Any

from support.kubernetes.refusals import Json, RefusedError, bad_request, unsupported_media

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"

# Which key tells the entries of a list apart, by the list's name. What is not here is replaced
# as a whole. (The `patchMergeKey` tags of the core types.)
_MERGE_KEYS = {
    "conditions": "type",
    "addresses": "type",
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "schedulingGates": "name",
    "resourceClaims": "name",
    "topologySpreadConstraints": "topologyKey",
    "ownerReferences": "uid",
    "podIPs": "ip",
}
_MERGED_VALUES = ("finalizers",)


def patched(content_type: str, document: Json, patch: Any, *, custom: bool) -> Json:
    """The document after a patch; the document itself stays as it is.

    Raises:
        RefusedError: the patch is malformed, does not apply, or has a form not taken here.
    """
    kind = content_type.partition(";")[0].strip()
    if kind == JSON_PATCH and isinstance(patch, list):
        return _json_patch(document, patch)
    if not isinstance(patch, dict):
        raise bad_request(f"cannot read a {kind or 'patch'} from {type(patch).__name__}")
    if kind == MERGE:
        return _merge(document, patch)
    if kind == STRATEGIC and not custom:
        return _strategic(document, patch)
    raise unsupported_media(kind)


def _merge(document: Any, patch: Json) -> Json:
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = _merge(result.get(key), value)
        else:
            result[key] = value
    return result


def _strategic(document: Any, patch: Json) -> Json:
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            result[name] = [entry for entry in result.get(name) or () if entry not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = _strategic(result.get(key), value)
        elif isinstance(value, list):
            result[key] = _strategic_list(key, result.get(key) or [], value)
        else:
            result[key] = value
    return result


def _strategic_list(name: str, old: list[Any], new: list[Any]) -> list[Any]:
    if name in _MERGED_VALUES:
        return [*old, *(value for value in new if value not in old)]
    key = _MERGE_KEYS.get(name)
    if key is None or not all(isinstance(entry, dict) for entry in (*old, *new)):
        return new
    if any(entry.get("$patch") == "replace" for entry in new):
        return [entry for entry in new if "$patch" not in entry]
    result = {entry.get(key): entry for entry in old}
    for entry in new:
        if entry.get("$patch") == "delete":
            result.pop(entry.get(key), None)
        else:
            result[entry.get(key)] = _strategic(result.get(entry.get(key)), entry)
    return list(result.values())


def _json_patch(document: Json, operations: list[Json]) -> Json:
    result: Any = copy.deepcopy(document)
    for operation in operations:
        path = operation.get("path", "")
        try:
            result = _step(result, operation, _pointer(path))
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise _does_not_apply(f"{operation.get('op')} {path}: {error!r}") from error
    assert isinstance(result, dict)
    return result


def _does_not_apply(why: str) -> RefusedError:
    return RefusedError(
        422, "Invalid", f"the server rejected our request due to an error in our request: {why}"
    )


def _step(document: Any, operation: Json, path: list[str]) -> Any:
    match operation.get("op"):
        case "test":
            if _at(document, path) != operation.get("value"):
                raise ValueError("the test failed")
        case "add":
            _put(document, path, copy.deepcopy(operation["value"]), insert=True)
        case "replace":
            _at(document, path)
            _put(document, path, copy.deepcopy(operation["value"]), insert=False)
        case "remove":
            _take(document, path)
        case "move":
            _put(document, path, _take(document, _pointer(operation["from"])), insert=True)
        case "copy":
            value = copy.deepcopy(_at(document, _pointer(operation["from"])))
            _put(document, path, value, insert=True)
        case other:
            raise ValueError(f"unknown operation {other!r}")
    return document


def _pointer(path: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]


def _at(document: Any, path: list[str]) -> Any:
    for step in path:
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


def _put(document: Any, path: list[str], value: Any, *, insert: bool) -> None:
    holder, last = _at(document, path[:-1]), path[-1]
    if not isinstance(holder, list):
        holder[last] = value
    elif last == "-":
        holder.append(value)
    elif insert:
        if int(last) > len(holder):
            raise IndexError(last)
        holder.insert(int(last), value)
    else:
        holder[int(last)] = value


def _take(document: Any, path: list[str]) -> Any:
    holder, last = _at(document, path[:-1]), path[-1]
    return holder.pop(int(last)) if isinstance(holder, list) else holder.pop(last)
