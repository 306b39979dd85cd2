"""Says what the image has, and under which licences: `python bill.py DEBIAN_TSV FOLDER`.

It writes FOLDER/SBOM.json, a software bill of materials in CycloneDX's form (https://cyclonedx.org/docs/1.5/json/),
and FOLDER/NOTICES.txt, the licences of the Python packages as they bring them. Those of Debian's packages are in the
image's /usr/share/doc. Both files depend on nothing but what is installed, so the same image has the same files.
"""

import json
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

_TEXTS = ("licen", "copying", "notice", "authors", "third")
"""How the names of files with licences begin."""
_RULE = "=" * 100


def main(debian: Path, folder: Path) -> None:
    """Write both files."""
    packages = sorted(distributions(), key=name_of)
    components = [python_package(package) for package in packages]
    components += [debian_package(*line.split("\t")) for line in debian.read_text().splitlines()]
    ours = next(part for part in components if part["name"] == "ipinsights")
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**ours, "type": "container"}},
        "components": [part for part in components if part is not ours],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SBOM.json").write_text(json.dumps(bill, indent=1) + "\n")
    (folder / "NOTICES.txt").write_text("\n".join(notice(package) for package in packages))
    print(f"{len(packages)} Python packages and {len(components) - len(packages)} Debian packages are listed")


def name_of(package: Distribution) -> str:
    """A package's name as indexes have it."""
    return package.name.lower().replace("_", "-").replace(".", "-")


def python_package(package: Distribution) -> dict[str, Any]:
    """A component of the bill."""
    name = name_of(package)
    url = f"pkg:pypi/{name}@{quote(package.version)}"
    licence = {"license": {"name": licence_of(package)}}
    return {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": package.version,
        "purl": url,
        "licenses": [licence],
    }


def debian_package(name: str, version: str, architecture: str) -> dict[str, Any]:
    """A component of the bill."""
    url = f"pkg:deb/debian/{name}@{quote(version)}?arch={architecture}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def licence_of(package: Distribution) -> str:
    """The licence that a package declares: an expression, a word, or what its classifiers name."""
    metadata = package.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classified = [text for text in metadata.get_all("Classifier", []) if text.startswith("License ::")]
    if classified:
        return " and ".join(text.rpartition(" :: ")[2] for text in classified)
    declared = metadata.get_all("License", [""])[0]
    return declared.strip().partition("\n")[0] or "not declared; see NOTICES.txt"


def notice(package: Distribution) -> str:
    """A package's name, and the texts of its licences."""
    files = [
        file
        for file in package.files or []
        if file.name.lower().startswith(_TEXTS) and not file.name.endswith((".py", ".pyc"))
    ]
    texts = [Path(str(package.locate_file(file))) for file in files]
    parts = [f"{path.name}\n\n{path.read_text(errors='replace').strip()}\n" for path in texts if path.is_file()]
    return "\n".join([_RULE, f"{name_of(package)} {package.version}: {licence_of(package)}", _RULE, "", *parts])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
