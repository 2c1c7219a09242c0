#!/usr/bin/env bash
# Fails when the committed gRPC modules are not what the .proto files generate.
set -euo pipefail
python=$1
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"$python" -m grpc_tools.protoc -I proto --python_out="$fresh" --pyi_out="$fresh" --grpc_python_out="$fresh" \
    proto/p2pfl_proto/v1/*.proto
status=0
while IFS= read -r file; do
    if ! cmp -s "$fresh/$file" "proto/$file"; then
        echo "proto/$file is not what the .proto files generate: run 'make proto' and commit" >&2
        status=1
    fi
done < <(cd "$fresh" && find . -type f)
exit $status
