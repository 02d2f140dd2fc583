"""The templates of the Helm chart, made from the manifests for kustomize.

`python -m tests.chart` writes them. deploy/helm/source says which value of the chart stands where.
"""

import re
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from tests.manifests import DEPLOY, Manifest, rendered

CHART = DEPLOY / "helm"

PARTS = {
    "base": "",
    "producer": ".Values.producer.enabled",
    "redis": ".Values.redis.enabled",
    "monitoring": ".Values.monitoring.enabled",
}
"""The directories of deploy/, and the value of the chart that each depends on."""

CLAIM = ".Values.claim.create"
"""The value that the claim depends on. Its name is a value, too."""

PLAIN = "«plain»"
"""What stands before the value of a field that is in overlays/plain only."""

HASH = re.compile(r"-[24-9bcdfghkmt]{10}$")
"""What kustomize puts after the name of a map."""


def write(chart: Path) -> None:
    """Writes what the chart has of the manifests: its templates, and the files of its maps."""
    for made in (*(chart / "templates" / part for part in PARTS), chart / "files"):
        shutil.rmtree(made, ignore_errors=True)
    places = {identity(one): part for part in PARTS for one in rendered(DEPLOY / part)}
    texts: defaultdict[Path, list[str]] = defaultdict(list)
    for manifest in both_platforms():
        if manifest["kind"] == "PersistentVolumeClaim":
            part, condition = "base", CLAIM
        else:
            part = places[identity(manifest)]
            condition = PARTS[part]
        if manifest["kind"] == "ConfigMap":
            manifest["data"] = data(manifest, chart)
        path = chart / "templates" / part / f"{manifest['kind'].lower()}.yaml"
        texts[path].append(template(manifest, condition))
    for path, found in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        origin = f"deploy/{path.parent.name}"
        head = f"{{{{- /* Made from {origin} by `make chart`: change it there. */ -}}}}\n"
        path.write_text(head + "---\n".join(found))


def data(manifest: Manifest, chart: Path) -> dict[str, str]:
    """What stands for the data of a map: the settings, or files, which are written too."""
    name = manifest["metadata"]["name"]
    if name == "imece":
        return {'«with include "imece.settings" . | fromYaml»': ""}
    (chart / "files" / name).mkdir(parents=True)
    for key, text in manifest["data"].items():
        (chart / "files" / name / key).write_text(text)
    return {key: f'«.Files.Get "files/{name}/{key}"»' for key in manifest["data"]}


def both_platforms() -> list[Manifest]:
    """The objects of deploy/helm/source, on plain and on openshift in one."""
    with tempfile.TemporaryDirectory() as folder:
        deploy = shutil.copytree(DEPLOY, Path(folder) / "deploy")
        source = deploy / "helm" / "source"
        text = (source / "kustomization.yaml").read_text()
        assert "overlays/plain\n" in text
        plain = unhashed(rendered(source))
        text = text.replace("overlays/plain", "overlays/openshift")
        (source / "kustomization.yaml").write_text(text)
        openshift = {identity(one): one for one in unhashed(rendered(source))}
    assert openshift.keys() == {identity(one) for one in plain}, (
        "only one platform has some objects"
    )
    return [merged(one, openshift[identity(one)]) for one in plain]


def identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], HASH.sub("", manifest["metadata"]["name"])


def unhashed(manifests: list[Manifest]) -> list[Manifest]:
    """With every map named as before kustomize put a hash after its name."""
    text = yaml.safe_dump_all(manifests, sort_keys=False)
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap":
            text = text.replace(manifest["metadata"]["name"], identity(manifest)[1])
    return list(yaml.safe_load_all(text))


def merged(plain: Any, openshift: Any) -> Any:
    """What is in both, and with PLAIN before it what is in the first only."""
    if isinstance(plain, dict):
        assert openshift.keys() <= plain.keys(), "openshift has a field that plain has not"
        return {
            key: merged(value, openshift[key]) if key in openshift else f"{PLAIN}{value}"
            for key, value in plain.items()
        }
    if isinstance(plain, list):
        return [merged(*pair) for pair in zip(plain, openshift, strict=True)]
    assert plain == openshift, f"{plain} on plain, {openshift} on openshift: what decides?"
    return plain


class Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes texts of several lines as blocks."""


Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def template(manifest: Manifest, condition: str) -> str:
    """An object as a template of Helm's: {{ … }} where it has «…»."""
    head = {key: manifest.pop(key) for key in ("apiVersion", "kind", "metadata")}
    text = yaml.dump(
        head | manifest, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000
    )
    text = text.replace("{{", '{{ "{{" }}')
    text = "".join(f"{expanded(line)}\n" for line in text.splitlines())
    text = re.sub(r" *\{\{- end \}\}\n *\{\{- if not .Values.openshift \}\}\n", "", text)
    return f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n" if condition else text


def expanded(line: str) -> str:
    if optional := re.fullmatch(r"( *)(?:- )?«with (.+)»: (.*)", line):
        indent, value, field = optional.groups()
        if field == "''":
            inside = [f"{indent}{{{{- toYaml . | nindent {len(indent)} }}}}"]
        else:
            inner = f"{indent}  "
            inside = [f"{indent}{field}:", f"{inner}{{{{- toYaml . | nindent {len(inner)} }}}}"]
        return "\n".join([f"{indent}{{{{- with {value} }}}}", *inside, f"{indent}{{{{- end }}}}"])
    if PLAIN in line:
        indent = line[: len(line) - len(line.lstrip())]
        field = line.replace(PLAIN, "")
        return f"{indent}{{{{- if not .Values.openshift }}}}\n{field}\n{indent}{{{{- end }}}}"
    if whole := re.fullmatch(r"(.*: )«([^»]+)»", line):
        quoted = "" if whole[2].endswith("| int") else " | quote"
        return f"{whole[1]}{{{{ {whole[2]}{quoted} }}}}"
    if part := re.fullmatch(r"(.*: )(.*«.*)", line):
        return part[1] + '"' + re.sub("«(.+?)»", r"{{ \1 }}", part[2]) + '"'
    return line


if __name__ == "__main__":
    write(CHART)
