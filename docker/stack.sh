# shellcheck shell=bash
# The stack as docker/backup, docker/restore and docker/upgrade handle it. Sourced by them; $program is the caller.

: "${program:?}"
compose=(docker compose --progress quiet)
database=mlflow

say() { echo "$program: $*"; }
die() { echo "$program: error: $*" >&2; exit 1; }

log=$(mktemp)
helper=
cleanup() {
  [ -z "$helper" ] || docker rm --force "$helper" >/dev/null 2>&1 || true
  rm -f "$log"
}
trap cleanup EXIT
# Before what a command that was interrupted with it could be blamed for.
trap 'die "interrupted"' INT TERM HUP

if ! { docker compose version && docker info; } >/dev/null 2>&1; then
  die "no Docker Engine with Compose answers here; without Docker: make down, then copy lab/"
fi

# must WHAT COMMAND…: the command, or one line with the last that it said.
must() {
  local what=$1
  shift
  "$@" 2>"$log" || die "$what: $(grep . "$log" | tail -n 1)"
}

# From 18 on each major version of PostgreSQL keeps its data in a folder of its own: a newer server would not see what
# an older one has written, and start with an empty database beside it.
foreign_postgres() { # prints "FOUND WANTED" where the volume has data of another major version than POSTGRES_IMAGE's
  # shellcheck disable=SC2016
  "${compose[@]}" run --rm --no-deps -T --entrypoint sh postgres -c '
    wanted=${PGDATA%/*} wanted=${wanted##*/}
    for file in /var/lib/postgresql/*/*/PG_VERSION; do
      [ ! -s "$file" ] || [ "$(cat "$file")" = "$wanted" ] || echo "$(cat "$file") $wanted"
    done' </dev/null
}

# Starts PostgreSQL and MinIO where they do not run. Containers that exist stay as they are, also where .env has moved on
# since: a backup before an upgrade must read with the server that wrote.
start_backends() {
  local foreign
  if [ -z "$(docker compose ps --all --quiet postgres)" ]; then
    foreign=$(must "the PostgreSQL image does not start" foreign_postgres)
    [ -z "$foreign" ] ||
      die "the volume holds data of PostgreSQL ${foreign% *}, POSTGRES_IMAGE is ${foreign#* }: put the image of ${foreign% *} back into .env"
  fi
  must "PostgreSQL or MinIO does not start" "${compose[@]}" up --detach --no-recreate --wait postgres minio
}

start_mlflow() { # start_mlflow WHAT: or WHAT and the reason in one line
  "${compose[@]}" up --detach --wait mlflow 2>"$log" ||
    die "$1: $({ cat "$log"; docker compose logs --no-log-prefix --tail 1 mlflow 2>&1; } | grep . | tail -n 1)"
}

in_postgres() { docker compose exec -T postgres "$@"; }

# sql DATABASE: the script on stdin, its rows as plain lines, fields apart by one space. No password: over the socket.
sql() { in_postgres psql --username="$database" --dbname="$1" -XqAt --field-separator=' ' \
  --set=ON_ERROR_STOP=1 --set=VERBOSITY=terse; }

# A container of MLflow's image beside the server, which may be stopped. Reached by exec, because what a container itself
# prints goes to Docker's log as well: all artifacts would. It reads from this script, and so ends with it, after kill -9
# too.
start_helper() {
  helper=lab-$program-$$-$RANDOM
  # shellcheck disable=SC2034
  exec {held_open}> >(exec "${compose[@]}" run --rm -T --no-deps --name "$helper" mlflow cat >/dev/null 2>>"$log")
  local client=$!
  until docker exec "$helper" true 2>/dev/null </dev/null; do
    kill -0 "$client" 2>/dev/null || die "a container of the mlflow image does not start: $(grep . "$log" | tail -n 1)"
    sleep 0.2
  done
}

# artifacts save|load. Its text goes in, not the copy in the image, so that a lab whose image is older can be backed up.
artifacts() { docker exec --interactive --workdir /opt "$helper" python3 -c "$(cat mlflow-server/artifacts.py)" "$@"; }

image_of() { docker inspect --format '{{.Config.Image}}' "$(docker compose ps --all --quiet "$1")"; }
volume_of_postgres() {
  docker inspect --format '{{range .Mounts}}{{if eq .Destination "/var/lib/postgresql"}}{{.Name}}{{end}}{{end}}' \
    "$(docker compose ps --all --quiet postgres)"
}
mlflow_version() { # of the server if it runs, else of its image
  local code='import importlib.metadata as m; print(m.version("mlflow"))'
  docker compose exec -T mlflow python3 -c "$code" 2>/dev/null </dev/null ||
    docker exec "$helper" python3 -c "$code" </dev/null
}
