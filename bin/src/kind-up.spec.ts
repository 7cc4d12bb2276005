import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import { parse } from 'yaml';
import { ROOT } from './settings.ts';

/**
 * Stands for docker, kind, kubectl, helm, curl and unzip: records each call, and keeps in the folder $STUBS what the real
 * ones would keep, as far as the script asks for it. A file `fail`, there, names the call that fails.
 */
const STUB = `#!/usr/bin/env bash
name=\${0##*/}
call="$name $*"
echo "$call" >> "$STUBS/calls"
[[ ! -f $STUBS/fail || $call != *"$(< "$STUBS/fail")"* ]] || { echo 'it is broken' >&2; exit 1; }
last=\${!#}
case "$call" in
  *' version'* | *' --version' | 'unzip -v') echo "$(< "$STUBS/version-$name")" ;;

  'docker network inspect'*) cat "$STUBS/network-$last" ;;
  'docker network create --subnet'*) [[ ! -f $STUBS/network-$last ]] && echo "$4" > "$STUBS/network-$last" || exit 1 ;;
  'docker network create'*) [[ ! -f $STUBS/network-$last ]] && echo 172.31.0.0/16 > "$STUBS/network-$last" || exit 1 ;;
  'docker network rm'*) rm "$STUBS/network-$last" ;;
  'docker inspect'*) cat "$STUBS/networks-of-node" ;;
  'docker ps'*) cat "$STUBS/stopped" 2> /dev/null || true ;;
  'docker start'*) rm "$STUBS/stopped" ;;
  'docker build'*) [[ -n $BUILDX_NO_DEFAULT_ATTESTATIONS ]] && touch "$STUBS/images" ;;
  'docker image inspect'*) echo sha256:0123456789abcdef0123456789abcdef ;;
  'docker image ls'*) [[ ! -f $STUBS/images ]] || echo 0123456789ab ;;
  'docker image rm'*) rm "$STUBS/images" ;;

  'kind get clusters') [[ ! -f $STUBS/cluster ]] || echo agent-sbx ;;
  'kind get kubeconfig'*) [[ -s $STUBS/cluster ]] && echo 'kind: Config' ;;
  'kind create'*)
    printf '%s\\n' node/1 node/2 node/3 > "$STUBS/cluster"
    echo "map[$KIND_EXPERIMENTAL_DOCKER_NETWORK]" > "$STUBS/networks-of-node"
    echo 'kind: Config' > "$KUBECONFIG" ;;
  'kind delete'*) rm -f "$STUBS/cluster" "$STUBS/helm-status" "$STUBS/networks-of-node" ;;

  'kubectl get nodes'*) cat "$STUBS/cluster" ;;
  'kubectl get'*'jsonpath={.data.token}') printf dG9rZW4= ;;
  'kubectl get'*'jsonpath={.data.ca\\.crt}') printf Y2E= ;;
  'kubectl apply'*-) cat >> "$STUBS/applied" ;;

  'helm status'*) echo "STATUS: $(< "$STUBS/helm-status")" ;;
  'helm get values'*) cat "$STUBS/helm-values" ;;
  'helm upgrade'*) cat > "$STUBS/helm-values"; echo deployed > "$STUBS/helm-status"; echo >> "$STUBS/helm-revisions" ;;
  'helm uninstall'*) rm "$STUBS/helm-status" ;;
  'helm template'*) echo 'kind: ClusterRole' ;;

  'curl '*) while [[ $1 != --output ]]; do shift; done; touch "$2" ;;
  'unzip '*) cp -R "$STUBS/source/." "$4" ;;
esac
`;
const VERSIONS = {
  docker: '28.2.2',
  kind: 'kind v0.33.0 go1.26.8 linux/amd64',
  kubectl: 'Client Version: v1.37.1\nKustomize Version: v5.7.1',
  helm: 'version.BuildInfo{Version:"v4.3.1", GitCommit:"", GoVersion:"go1.26.8"}',
  curl: 'curl 8.14.1',
  unzip: 'UnZip 6.00',
};
/** All that it may call besides. */
const SYSTEM = [
  ...[
    'basename',
    'bash',
    'cat',
    'chmod',
    'cp',
    'cut',
    'dirname',
    'env',
    'find',
    'grep',
    'mkdir',
    'mv',
    'openssl',
    'rm',
  ],
  ...['sed', 'sha256sum', 'sleep', 'sort', 'tail', 'touch', 'tr', 'xargs'],
].map((name) => [name, execFileSync('bash', ['-c', `command -v ${name}`], { encoding: 'utf8' }).trim()] as const);
const SOURCE = 'sigs.k8s.io/agent-sandbox@v9.8.7';
/** What only asks, and what changes nothing when it is done again. */
const ASKS =
  /^(docker (network inspect|inspect|image inspect|image ls|ps)|kind get|kubectl (get|wait)|helm (status|get|template)) |( version\b.*| --version|^unzip -v)$/;
const REPEATABLE = /^(docker (build|tag)|kind load|kubectl apply) /;

// Each run of the script starts many processes.
jest.setTimeout(30_000);

let dir: string;
let checkout: string;
let stubs: string;
const stub = (name: string): string => join(stubs, name);

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'holdfast-spec-'));
  checkout = join(dir, 'checkout');
  stubs = join(dir, 'stubs');
  const bin = join(dir, 'bin');
  for (const folder of [bin, stubs]) mkdirSync(folder);
  for (const [name, path] of SYSTEM) {
    symlinkSync(path, join(bin, name));
  }
  for (const [name, version] of Object.entries(VERSIONS)) {
    writeFileSync(join(bin, name), STUB, { mode: 0o755 });
    writeFileSync(stub(`version-${name}`), version);
  }
  for (const path of ['bin/kind-up.sh', 'k8s/kind', '.env.example'])
    cpSync(join(ROOT, path), join(checkout, path), { recursive: true });

  const files = [`${SOURCE}/go.mod`, `${SOURCE}/helm/Chart.yaml`, `${SOURCE}/helm/crds/a.yaml`];
  for (const file of files) {
    mkdirSync(dirname(join(stubs, 'source', file)), { recursive: true });
    writeFileSync(join(stubs, 'source', file), file);
  }
  const sha256 = (text: string) => createHash('sha256').update(text);
  const sum = sha256(files.map((file) => `${sha256(file).digest('hex')}  ${file}\n`).join('')).digest('base64');
  const pins = join(checkout, 'k8s/testbed/tools/agent-sandbox/go.sum');
  mkdirSync(dirname(pins), { recursive: true });
  writeFileSync(
    pins,
    `sigs.k8s.io/agent-sandbox v9.8.7 h1:${sum}\nsigs.k8s.io/agent-sandbox v9.8.7/go.mod h1:other=\n`,
  );
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

function kindUp(...args: string[]): { status: number | null; said: string; complained: string; calls: string[] } {
  rmSync(stub('calls'), { force: true });
  const { status, stdout, stderr } = spawnSync(join(checkout, 'bin/kind-up.sh'), args, {
    encoding: 'utf8',
    env: { PATH: join(dir, 'bin'), STUBS: stubs, GOPROXY: 'https://proxy.example,direct' },
  });
  const calls = existsSync(stub('calls')) ? readFileSync(stub('calls'), 'utf8').trimEnd().split('\n') : [];
  return { status, said: stdout, complained: stderr, calls };
}

const doing = (calls: readonly string[]): string[] => calls.filter((call) => !ASKS.test(call));
const changing = (calls: readonly string[]): string[] => doing(calls).filter((call) => !REPEATABLE.test(call));
const state = (name: string): string => join(checkout, '.holdfast/kind', name);
const env = (): string => readFileSync(join(checkout, '.env'), 'utf8');

/** All that the script and what it drives keep, with modes and contents. */
function everything(): Record<string, string> {
  const kept = readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !['calls', 'applied'].includes(entry.name))
    .map((entry) => join(entry.parentPath, entry.name));
  return Object.fromEntries(kept.map((file) => [file, `${statSync(file).mode} ${readFileSync(file, 'utf8')}`]));
}

describe('bin/kind-up.sh', () => {
  it('makes network, cluster, controller, image and rights, in this order, and says what is next', () => {
    const { status, said, complained, calls } = kindUp();
    expect({ status, complained }).toEqual({ status: 0, complained: '' });
    const source = `.holdfast/kind/agent-sandbox/${SOURCE}/helm`;
    expect(doing(calls)).toEqual([
      'docker network create agent-sbx-free',
      'docker network rm agent-sbx-free',
      'docker network create --subnet 172.31.0.0/16 agent-sbx',
      'kind create cluster --config k8s/kind/cluster.yaml',
      'curl --fail --silent --show-error --location --output .holdfast/kind/download.zip https://proxy.example/sigs.k8s.io/agent-sandbox/@v/v9.8.7.zip',
      'unzip -q .holdfast/kind/download.zip -d .holdfast/kind/download',
      `kubectl apply --server-side --force-conflicts --filename ${source}/crds`,
      `helm upgrade --install agent-sandbox ${source} --namespace agent-sandbox-system --create-namespace --skip-crds --values - --wait --timeout 5m`,
      'docker build --file harnesses/runner/Dockerfile --tag holdfast/runner:latest .',
      'docker tag holdfast/runner:latest holdfast/runner:0123456789ab',
      'kind load docker-image holdfast/runner:0123456789ab --name agent-sbx',
      'kubectl apply --server-side --filename k8s/kind/namespace.yaml',
      'kubectl apply --server-side --force-conflicts --filename -',
      'kubectl apply --server-side --filename k8s/kind/token.yaml',
    ]);
    expect(said.trimEnd().split('\n').at(-3)).toBe('  docker compose up --build --detach');
  });

  it('gives the controller its image and its extensions', () => {
    kindUp();
    expect(JSON.parse(readFileSync(stub('helm-values'), 'utf8'))).toEqual({
      controller: { extensions: true, sandboxWarmPoolConcurrentWorkers: 4 },
      image: { tag: 'v9.8.7' },
      namespace: { create: false },
    });
  });

  it("writes what compose asks for into .env, and a kubeconfig of the service's own account", () => {
    kindUp();
    expect(env()).toBe(
      `${readFileSync(join(checkout, '.env.example'), 'utf8')}COMPOSE_FILE=docker-compose.yml:deploy/compose/kubernetes.yml
KIND_HUB_ADDRESS=172.31.255.254
KIND_SANDBOX_IMAGE=holdfast/runner:0123456789ab
`,
    );
    expect(statSync(join(checkout, '.env')).mode & 0o777).toBe(0o600);
    expect(statSync(state('')).mode & 0o777).toBe(0o700);
    expect(statSync(state('kubeconfig')).mode & 0o777).toBe(0o644);
    expect(parse(readFileSync(state('kubeconfig'), 'utf8'))).toMatchObject({
      clusters: [{ cluster: { server: 'https://agent-sbx-control-plane:6443', 'certificate-authority-data': 'Y2E=' } }],
      users: [{ user: { token: 'token' } }],
    });
  });

  it('keeps what .env says already', () => {
    writeFileSync(
      join(checkout, '.env'),
      'COMPOSE_FILE=docker-compose.yml:mine.yml\nKIND_HUB_ADDRESS=172.20.255.254\nLOG_LEVEL=debug\n',
    );
    kindUp();
    expect(env()).toBe(`LOG_LEVEL=debug
COMPOSE_FILE=docker-compose.yml:mine.yml:deploy/compose/kubernetes.yml
KIND_HUB_ADDRESS=172.31.255.254
KIND_SANDBOX_IMAGE=holdfast/runner:0123456789ab
`);
  });

  it('changes nothing when it is run again', () => {
    kindUp();
    const before = everything();
    const { status, calls } = kindUp();
    expect(status).toBe(0);
    expect(changing(calls)).toEqual([]);
    expect(everything()).toEqual(before);
  });

  it('names everything that is missing, too old or not running, and touches nothing', () => {
    rmSync(join(dir, 'bin/helm'));
    writeFileSync(stub('version-kind'), 'kind v0.32.9 go1.26 linux/amd64');
    writeFileSync(stub('fail'), 'docker version');
    const { status, complained, calls } = kindUp();
    expect(status).toBe(1);
    expect(complained).toMatch(/docker does not say its version .*: it is broken\n/);
    expect(complained).toContain('kind is 0.32; needed is 0.33 or newer: https://kind.sigs.k8s.io');
    expect(complained).toContain('helm is not installed; needed is 3.16 or newer: https://helm.sh');
    expect(complained).not.toContain('kubectl');
    expect(doing(calls)).toEqual([]);
    expect(existsSync(join(checkout, '.env'))).toBe(false);
  });

  it.each([
    ['docker network create --subnet', 'making the Docker network agent-sbx'],
    ['kind create', 'making the cluster agent-sbx (a few minutes, the first time)'],
    ['kubectl wait --for condition=Ready', 'waiting for the nodes'],
    ['curl --fail', 'downloading agent-sandbox v9.8.7'],
    ['helm upgrade', 'installing the controller agent-sandbox v9.8.7'],
    ['docker build', 'building the image of sandboxes'],
    ['kind load', 'loading holdfast/runner:0123456789ab into the nodes'],
    ['helm template', 'applying the rights of the sandbox service'],
    ['kubectl get --namespace holdfast', 'applying the rights of the sandbox service'],
  ])('stops where %s fails, says so, and goes on from there the next time', (call, step) => {
    writeFileSync(stub('fail'), call);
    const broken = kindUp();
    expect(broken.status).toBe(1);
    expect(broken.complained).toBe(
      `it is broken\nkind-up: this step failed: ${step}. Run it again to go on from there\n`,
    );
    expect(broken.calls.findIndex((each) => each.includes(call))).toBeGreaterThanOrEqual(broken.calls.length - 2);
    expect(existsSync(join(checkout, '.env'))).toBe(false);
    rmSync(stub('fail'));
    expect(kindUp()).toMatchObject({ status: 0, complained: '' });
    expect(existsSync(stub('network-agent-sbx-free'))).toBe(false);
    expect(readFileSync(stub('helm-revisions'), 'utf8')).toBe('\n');
  });

  it('installs no source but the pinned one, and keeps nothing of another', () => {
    writeFileSync(join(stubs, 'source', SOURCE, 'helm/crds/a.yaml'), 'another');
    for (let run = 0; run < 2; run++) {
      const { status, complained, calls } = kindUp();
      expect(status).toBe(1);
      expect(complained).toContain(
        'the source of agent-sandbox v9.8.7 is not the one that k8s/testbed/tools/agent-sandbox/go.sum pins',
      );
      expect(calls.filter((call) => /^(helm|kubectl) (upgrade|apply)/.test(call))).toEqual([]);
      expect(existsSync(state('agent-sandbox'))).toBe(false);
    }
  });

  it.each([
    ['no API', ''],
    ['a node that never joined', 'node/1\nnode/2\n'],
  ])('makes a cluster with %s again: its creation was interrupted', (_what, nodes) => {
    kindUp();
    writeFileSync(stub('cluster'), nodes);
    expect(changing(kindUp().calls).slice(0, 2)).toEqual([
      'kind delete cluster --name agent-sbx',
      'kind create cluster --config k8s/kind/cluster.yaml',
    ]);
  });

  it('starts nodes that are stopped, and leaves the cluster as it is', () => {
    kindUp();
    writeFileSync(stub('stopped'), 'one\ntwo\n');
    expect(changing(kindUp().calls)).toEqual(['docker start one two']);
  });

  it('leaves a cluster of that name alone that it did not make', () => {
    writeFileSync(stub('cluster'), 'node/1\n');
    writeFileSync(stub('networks-of-node'), '<nil>\n');
    const { status, complained, calls } = kindUp();
    expect(status).toBe(1);
    expect(complained).toContain('there is a kind cluster agent-sbx that this script did not make');
    expect(calls.filter((call) => call.startsWith('kind '))).toEqual(['kind version', 'kind get clusters']);
  });

  it('clears away what an interrupted helm left', () => {
    kindUp();
    writeFileSync(stub('helm-status'), 'pending-install');
    expect(changing(kindUp().calls)).toEqual([
      'helm uninstall agent-sandbox --namespace agent-sandbox-system --wait',
      expect.stringMatching(/^helm upgrade --install agent-sandbox /),
    ]);
  });

  it('upgrades the controller when it is another version', () => {
    kindUp();
    writeFileSync(stub('helm-values'), '{"image":{"tag":"v9.8.6"}}');
    expect(changing(kindUp().calls)).toEqual([expect.stringMatching(/^helm upgrade --install agent-sandbox /)]);
  });

  it('--down removes what it made, and nothing else of .env', () => {
    const own = 'COMPOSE_FILE=docker-compose.yml:mine.yml\nLOG_LEVEL=debug\n';
    writeFileSync(join(checkout, '.env'), own);
    kindUp();
    const { status, complained, calls } = kindUp('--down');
    expect({ status, complained }).toEqual({ status: 0, complained: '' });
    expect(changing(calls)).toEqual([
      'kind delete cluster --name agent-sbx',
      'docker image rm --force 0123456789ab',
      'docker network rm agent-sbx',
    ]);
    expect(env().split('\n').toSorted()).toEqual(own.split('\n').toSorted());
    expect(existsSync(state(''))).toBe(false);
    expect(changing(kindUp('--down').calls)).toEqual(['kind delete cluster --name agent-sbx']);
  });

  it('--down takes the file of settings back to what it was', () => {
    cpSync(join(checkout, '.env.example'), join(checkout, '.env'));
    kindUp();
    kindUp('--down');
    expect(env()).toBe(readFileSync(join(checkout, '.env.example'), 'utf8'));
  });

  it('refuses what it does not know', () => {
    expect(kindUp('--dwon')).toMatchObject({ status: 2, calls: [], said: '' });
    expect(kindUp('--help').said).toMatch(/^usage: bin\/kind-up\.sh \[--down\]\n/);
  });
});

describe('k8s/kind', () => {
  it('is the cluster that the script looks for, with the bounds that a pod cannot ask for itself', () => {
    const cluster = parse(readFileSync(join(ROOT, 'k8s/kind/cluster.yaml'), 'utf8')) as {
      name: string;
      nodes: { role: string; image: string }[];
      kubeadmConfigPatches: string[];
    };
    expect(cluster.name).toBe('agent-sbx');
    expect(cluster.nodes.map(({ role }) => role)).toEqual(['control-plane', 'worker', 'worker']);
    for (const { image } of cluster.nodes) expect(image).toMatch(/^kindest\/node:v1\.\d+\.\d+@sha256:[0-9a-f]{64}$/);
    expect(cluster.kubeadmConfigPatches.map((patch) => parse(patch) as unknown)).toEqual([
      { kind: 'KubeletConfiguration', podPidsLimit: 1024, singleProcessOOMKill: true },
    ]);
  });
});
