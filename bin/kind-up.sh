#!/usr/bin/env bash
# Makes a Kubernetes cluster for sandboxes in Docker, with everything that docker-compose.yml needs to use it.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 077

readonly CLUSTER=agent-sbx CONTROLLER_NAMESPACE=agent-sandbox-system
readonly STATE=.holdfast/kind OVERRIDE=deploy/compose/kubernetes.yml
# The version of the controller, and what the public checksum database says that its source is.
readonly PINS=k8s/testbed/tools/agent-sandbox/go.sum MODULE=sigs.k8s.io/agent-sandbox
# What this script asks of the cluster it asks as its administrator; no other kubeconfig is read or changed.
export KUBECONFIG="$PWD/$STATE/admin"

usage() {
  cat <<'TEXT'
usage: bin/kind-up.sh [--down]

Makes the kind cluster agent-sbx (one control plane, two workers) and prepares docker-compose.yml for it:
  network     the Docker network agent-sbx, in which the sandbox service has an address that never changes
  cluster     k8s/kind/cluster.yaml; a cluster whose creation was interrupted is made again
  controller  agent-sandbox, its source checked against its checksum, installed by its own helm chart
  image       harnesses/runner/Dockerfile, built and loaded into the nodes
  rights      the sandbox service's account with the rights of k8s/chart and no others, and a kubeconfig for it
  .env        COMPOSE_FILE, KIND_HUB_ADDRESS and KIND_SANDBOX_IMAGE

What is there is left alone, so it may be run again at any time: after an interruption, a reboot, an update.
Then: docker compose up --build --detach
  --down      removes all of it. Sandboxes and their files go with the cluster; sessions and their logs stay.
TEXT
}

# Says what begins, and remembers it in case that it fails.
step() {
  doing=$*
  printf 'kind-up: %s\n' "$*"
}

fail() {
  trap - EXIT
  printf 'kind-up: %s\n' "$*" >&2
  exit 1
}

doing=
trap '[[ $? == 0 || -z $doing ]] || fail "this step failed: $doing. Run it again to go on from there"' EXIT

# Writes standard input to a file unless that is what it holds; in place, for a container may have mounted it.
keep() {
  local text
  text=$(cat)
  [[ -f $1 && $(cat "$1") == "$text" ]] || printf '%s\n' "$text" > "$1"
}

# need NAME MINIMUM WHERE COMMAND…: the command prints NAME's version.
missing=
need() {
  local name=$1 minimum=$2 where=$3 found
  shift 3
  if ! command -v "${name%% *}" > /dev/null; then
    missing+="
  $name is not installed; needed is $minimum or newer: $where"
  elif ! found=$("$@" 2>&1) || ! [[ $found =~ ([0-9]+)\.([0-9]+) ]]; then
    missing+="
  $name does not say its version ($*): $found"
  elif ((BASH_REMATCH[1] < ${minimum%.*} || (BASH_REMATCH[1] == ${minimum%.*} && BASH_REMATCH[2] < ${minimum#*.}))); then
    missing+="
  $name is ${BASH_REMATCH[0]}; needed is $minimum or newer: $where"
  fi
}

check_prerequisites() {
  step 'checking docker, kind, kubectl, helm, curl, unzip and openssl'
  # Of the engine, not of the client: it has to run.
  need docker 25.0 https://docs.docker.com/engine/install/ docker version --format '{{.Server.Version}}'
  need 'docker compose' 2.24 https://docs.docker.com/compose/install/ docker compose version --short
  need kind 0.33 https://kind.sigs.k8s.io/docs/user/quick-start/#installation kind version
  need kubectl 1.31 https://kubernetes.io/docs/tasks/tools/ kubectl version --client
  need helm 3.16 https://helm.sh/docs/intro/install/ helm version
  need curl 7.0 'your package manager' curl --version
  need unzip 6.0 'your package manager' unzip -v
  need openssl 1.0 'your package manager' openssl version
  [[ -z $missing ]] || fail "what is needed is not there:$missing"
}

subnet_of() {
  docker network inspect --format '{{(index .IPAM.Config 0).Subnet}}' "$1" 2> /dev/null
}

# Containers may be given an address only in a network whose subnet was given too, and Docker alone knows a free one.
ensure_network() {
  local subnet
  if ! subnet_of "$CLUSTER" > /dev/null; then
    step "making the Docker network $CLUSTER"
    subnet=$(subnet_of "$CLUSTER-free") || subnet=$(docker network create "$CLUSTER-free" > /dev/null && subnet_of "$CLUSTER-free")
    docker network rm "$CLUSTER-free" > /dev/null
    docker network create --subnet "$subnet" "$CLUSTER" > /dev/null
  fi
}

# The last address of the subnet: Docker hands addresses out from the first one up.
hub_address() {
  local subnet a b c d bits last
  subnet=$(subnet_of "$CLUSTER")
  IFS=./ read -r a b c d bits <<< "$subnet"
  last=$((((a << 24 | b << 16 | c << 8 | d) | ((1 << (32 - bits)) - 1)) - 1))
  echo "$((last >> 24 & 255)).$((last >> 16 & 255)).$((last >> 8 & 255)).$((last & 255))"
}

has_cluster() {
  local clusters
  clusters=$(kind get clusters)
  grep -x "$CLUSTER" <<< "$clusters" > /dev/null
}

# Whether every node of k8s/kind/cluster.yaml has joined. kind joins them last, and takes none away afterwards.
is_whole() {
  local admin nodes deadline=$((SECONDS + 120))
  admin=$(kind get kubeconfig --name "$CLUSTER" 2> /dev/null) || return 1
  keep "$KUBECONFIG" <<< "$admin"
  until nodes=$(kubectl get nodes --output name --request-timeout 5s 2>&1); do
    ((SECONDS < deadline)) || fail "the cluster's API does not answer: $nodes
  docker logs $CLUSTER-control-plane may say why; bin/kind-up.sh --down makes room for a new one"
    sleep 2
  done
  (($(grep -c . <<< "$nodes") == $(grep -c '^  - role:' k8s/kind/cluster.yaml)))
}

ensure_cluster() {
  local stopped network
  if has_cluster; then
    network=$(docker inspect --format "{{index .NetworkSettings.Networks \"$CLUSTER\"}}" "$CLUSTER-control-plane" 2> /dev/null || true)
    [[ $network != '<nil>' ]] || fail "there is a kind cluster $CLUSTER that this script did not make; kind delete cluster --name $CLUSTER removes it"
    stopped=$(docker ps --all --quiet --filter "label=io.x-k8s.kind.cluster=$CLUSTER" --filter status=exited --filter status=created)
    if [[ -n $stopped ]]; then
      step 'starting the nodes that are stopped'
      # shellcheck disable=SC2086 # one word each
      docker start $stopped > /dev/null
    fi
    if is_whole; then return; fi
    step "removing what an interrupted creation left of the cluster $CLUSTER"
    kind delete cluster --name "$CLUSTER"
  fi
  step "making the cluster $CLUSTER (a few minutes, the first time)"
  KIND_EXPERIMENTAL_DOCKER_NETWORK=$CLUSTER kind create cluster --config k8s/kind/cluster.yaml
}

# What go.sum holds: the checksum of the names and checksums of all files below a folder.
tree_sum() (
  sha256=(sha256sum)
  command -v sha256sum > /dev/null || sha256=(shasum -a 256)
  cd "$1"
  find . -type f | sed 's:^\./::' | LC_ALL=C sort | tr '\n' '\0' | xargs -0 "${sha256[@]}" |
    openssl dgst -sha256 -binary | openssl base64
)

ensure_controller() {
  local version sum source proxy values status
  read -r _ version sum <<< "$(grep "^$MODULE v[^ /]* h1:" "$PINS")"
  source=$STATE/agent-sandbox/$MODULE@$version
  if [[ ! -d $source ]]; then
    step "downloading agent-sandbox $version"
    rm -rf "$STATE/agent-sandbox" "$STATE/download"
    mkdir -p "$STATE/download"
    proxy=${GOPROXY:-}
    proxy=${proxy%%[,|]*}
    [[ $proxy == *://* ]] || proxy=https://proxy.golang.org
    curl --fail --silent --show-error --location --output "$STATE/download.zip" "$proxy/$MODULE/@v/$version.zip"
    unzip -q "$STATE/download.zip" -d "$STATE/download"
    [[ h1:$(tree_sum "$STATE/download") == "$sum" ]] || fail "the source of agent-sandbox $version is not the one that $PINS pins"
    mv "$STATE/download" "$STATE/agent-sandbox"
    rm "$STATE/download.zip"
  fi

  step "applying the resource definitions of agent-sandbox $version"
  # helm would install them once and never change them.
  kubectl apply --server-side --force-conflicts --filename "$source/helm/crds"
  kubectl wait --for condition=Established --timeout 60s --filename "$source/helm/crds" > /dev/null

  values="{\"controller\":{\"extensions\":true,\"sandboxWarmPoolConcurrentWorkers\":4},\"image\":{\"tag\":\"$version\"},\"namespace\":{\"create\":false}}"
  status=$(helm status agent-sandbox --namespace "$CONTROLLER_NAMESPACE" 2> /dev/null | sed -n 's/^STATUS: //p') || status=
  if [[ $status == deployed && $(helm get values agent-sandbox --namespace "$CONTROLLER_NAMESPACE" --output json) == "$values" ]]; then
    return
  fi
  if [[ $status == pending-* || $status == uninstalling ]]; then
    step 'removing what an interrupted helm left of agent-sandbox'
    helm uninstall agent-sandbox --namespace "$CONTROLLER_NAMESPACE" --wait
  fi
  step "installing the controller agent-sandbox $version"
  helm upgrade --install agent-sandbox "$source/helm" --namespace "$CONTROLLER_NAMESPACE" --create-namespace \
    --skip-crds --values - --wait --timeout 5m <<< "$values"
}

ensure_image() {
  local id
  step 'building the image of sandboxes'
  # Attestations would give every build another id.
  BUILDX_NO_DEFAULT_ATTESTATIONS=1 docker build --file harnesses/runner/Dockerfile --tag holdfast/runner:latest .
  id=$(docker image inspect --format '{{.Id}}' holdfast/runner:latest)
  # Named by what it is: a changed image is another one to the environments, whose new sandboxes are made from it.
  image=holdfast/runner:$(cut -c 1-12 <<< "${id#sha256:}")
  docker tag holdfast/runner:latest "$image"
  step "loading $image into the nodes"
  kind load docker-image "$image" --name "$CLUSTER"
}

ensure_rights() {
  local authority token
  step 'applying the rights of the sandbox service'
  kubectl apply --server-side --filename k8s/kind/namespace.yaml
  helm template holdfast k8s/chart --namespace holdfast | kubectl apply --server-side --force-conflicts --filename -
  kubectl apply --server-side --filename k8s/kind/token.yaml
  kubectl wait --namespace holdfast --for 'jsonpath={.data.token}' --timeout 60s secret/holdfast-sandbox-token > /dev/null
  authority=$(from_token 'ca\.crt')
  token=$(from_token token | openssl base64 -d -A)
  # It reaches the API under the name of the node that serves it, in the network that they share.
  keep "$STATE/kubeconfig" << YAML
apiVersion: v1
kind: Config
clusters:
  - name: $CLUSTER
    cluster:
      server: https://$CLUSTER-control-plane:6443
      certificate-authority-data: $authority
users:
  - name: holdfast-sandbox
    user:
      token: $token
contexts:
  - name: $CLUSTER
    context: { cluster: $CLUSTER, user: holdfast-sandbox }
current-context: $CLUSTER
YAML
  # The service in its container is another user; nobody but this one gets into the folder.
  chmod 644 "$STATE/kubeconfig"
}

from_token() {
  kubectl get --namespace holdfast secret/holdfast-sandbox-token --output "jsonpath={.data.$1}"
}

value_of() {
  sed -n "s/^$1=//p" .env | tail -n 1
}

# set_value NAME VALUE: in .env, in place of the value that it has; an empty one removes it.
set_value() {
  local others
  [[ $(value_of "$1") != "$2" ]] || return 0
  others=$(grep -v "^$1=" .env || true)
  printf '%s\n' "$others" ${2:+"$1=$2"} > .env
}

ensure_env() {
  local files address
  step 'writing .env'
  address=$(hub_address)
  [[ -f .env ]] || cp .env.example .env
  files=$(value_of COMPOSE_FILE)
  [[ :$files: == *:$OVERRIDE:* ]] || set_value COMPOSE_FILE "${files:-docker-compose.yml}:$OVERRIDE"
  set_value KIND_HUB_ADDRESS "$address"
  set_value KIND_SANDBOX_IMAGE "$image"
  grep -E '^(COMPOSE_FILE|KIND_HUB_ADDRESS|KIND_SANDBOX_IMAGE)=' .env
}

up() {
  check_prerequisites
  mkdir -p "$STATE"
  ensure_network
  ensure_cluster
  step 'waiting for the nodes'
  kubectl wait --for condition=Ready nodes --all --timeout 5m > /dev/null
  ensure_controller
  ensure_image
  ensure_rights
  ensure_env
  cat << TEXT
kind-up: ready. Next:
  docker compose up --build --detach
  docker compose run --rm admin sign-in
  KUBECONFIG=$STATE/admin kubectl get sandboxes --all-namespaces
TEXT
}

down() {
  local files images
  need docker 25.0 https://docs.docker.com/engine/install/ docker version --format '{{.Server.Version}}'
  need kind 0.33 https://kind.sigs.k8s.io/docs/user/quick-start/#installation kind version
  [[ -z $missing ]] || fail "what is needed is not there:$missing"
  if [[ -f .env ]]; then
    step 'taking the cluster out of .env'
    files=:$(value_of COMPOSE_FILE):
    files=${files/:$OVERRIDE:/:}
    files=${files#:}
    files=${files%:}
    [[ $files != docker-compose.yml ]] || files=
    set_value COMPOSE_FILE "$files"
    set_value KIND_HUB_ADDRESS ''
    set_value KIND_SANDBOX_IMAGE ''
  fi
  step "removing the cluster $CLUSTER"
  kind delete cluster --name "$CLUSTER"
  images=$(docker image ls --quiet --filter 'reference=holdfast/runner' | sort -u)
  if [[ -n $images ]]; then
    step 'removing the images of sandboxes'
    # shellcheck disable=SC2086 # one word each
    docker image rm --force $images > /dev/null
  fi
  rm -rf "$STATE"
  if subnet_of "$CLUSTER" > /dev/null; then
    step "removing the network $CLUSTER (docker compose down first, if a container of it still runs)"
    docker network rm "$CLUSTER" > /dev/null
  fi
  if subnet_of "$CLUSTER-free" > /dev/null; then docker network rm "$CLUSTER-free" > /dev/null; fi
  step 'everything is removed'
}

case "${1:-}" in
  '') up ;;
  --down) down ;;
  --help | -h) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
