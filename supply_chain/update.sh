#!/usr/bin/env bash
# Makes requirements.lock, sbom.cdx.json and licenses.md again from pyproject.toml and constraints.txt: `make lock`.
# Needs the network and 10 GB in build/; about three minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=build/lock-tools env=build/lock-env
python3 -m venv --clear "$tools" && "$tools/bin/pip" install -q uv==0.13.9 cyclonedx-bom==7.5.0 pip-licenses==5.5.5
UV_CUSTOM_COMPILE_COMMAND="make lock" "$tools/bin/uv" pip compile -q --universal --generate-hashes --no-annotate --no-emit-index-url \
  --python-version 3.11 -c constraints.txt --extra dev --extra quantized --extra serve pyproject.toml -o supply_chain/requirements.lock
echo "installing the locked packages into $env: their metadata names the licenses"
python3 -m venv --clear "$env"
"$env/bin/pip" install -q --require-hashes -r supply_chain/requirements.lock
"$env/bin/pip" install -q --no-deps -e . && "$env/bin/pip" check
"$tools/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible --of JSON -o supply_chain/sbom.cdx.json "$env/bin/python"
{
  echo "# Licenses of the locked packages"
  echo
  echo "As their metadata declares them; made by \`make lock\`. UNKNOWN: the metadata names none, see the address."
  echo
  "$tools/bin/pip-licenses" --python "$env/bin/python" --format=markdown --with-urls --ignore-packages finetune pip setuptools |
    sed -E 's/ +\|/ |/g; s/-{4,}/---/g'
} > supply_chain/licenses.md
