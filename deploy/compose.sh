# Sourced: `compose`, whichever of the two programs is there, on deploy/compose.yaml.
if docker compose version >/dev/null 2>&1; then
    compose() { docker compose --file deploy/compose.yaml "$@"; }
elif command -v docker-compose >/dev/null; then
    compose() { docker-compose --file deploy/compose.yaml "$@"; }
else
    echo "neither docker compose nor docker-compose is installed" >&2
    exit 1
fi
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-quorate}
export QUORATE_DOCKERFILE=deploy/Dockerfile.scratch
