# Sourced by the tools: sets UV to a uv executable, installing one into .cache/uv if the machine has none.
if command -v uv >/dev/null 2>&1; then
    UV=$(command -v uv)
else
    UV=$PWD/.cache/uv/bin/uv
    if [ ! -x "$UV" ]; then
        python=${PYTHON:-python3}
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "Error: $python is older than Python 3.11, set PYTHON to a newer one" >&2
            exit 1
        }
        "$python" -m venv .cache/uv || {
            echo "Error: $python cannot make a virtual environment, install its venv and pip modules" >&2
            exit 1
        }
        .cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv >&2
    fi
fi
