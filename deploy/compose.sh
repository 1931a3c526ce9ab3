# Sourced: `compose`, whichever of the two programs is there, on deploy/compose.yaml, and on the file that
# QUORATE_COMPOSE_EXTRA names, if any, which overrides what is in it.
files=(--file deploy/compose.yaml ${QUORATE_COMPOSE_EXTRA:+--file "$QUORATE_COMPOSE_EXTRA"})
if docker compose version >/dev/null 2>&1; then
    compose() { docker compose "${files[@]}" "$@"; }
elif command -v docker-compose >/dev/null; then
    compose() { docker-compose "${files[@]}" "$@"; }
else
    echo "neither docker compose nor docker-compose is installed" >&2
    exit 1
fi
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-quorate}
export QUORATE_DOCKERFILE=deploy/Dockerfile.scratch
