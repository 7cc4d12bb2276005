import { createHash } from 'node:crypto';
import { chmodSync, copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { cacheDir } from '../../../bin/src/nats-server.ts';
import { run } from './commands.ts';
import { TESTBED } from './settings.ts';

/** Where each program is, and what else came with them. */
export interface Binaries {
  readonly apiserver: string;
  readonly controllerManager: string;
  readonly scheduler: string;
  readonly kubelet: string;
  readonly etcd: string;
  readonly agentSandbox: string;
  readonly pause: string;
  /** CRDs and RBAC of the agent-sandbox controller. */
  readonly agentSandboxManifests: string;
  readonly versions: Readonly<Record<'kubernetes' | 'etcd' | 'agent-sandbox', string>>;
}

const KUBERNETES = ['kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kubelet'];

/** The version that a tool's go.mod pins, with its `v`. */
function pinned(tool: string, module: string): string {
  const text = readFileSync(join(TESTBED, 'tools', tool, 'go.mod'), 'utf8');
  const version = new RegExp(`^(?:require|\\t)\\s*${module.replaceAll('.', '\\.')} (v\\S+)`, 'm').exec(text)?.[1];
  if (version === undefined) throw new Error(`k8s/testbed/tools/${tool}/go.mod does not require ${module}`);
  return version;
}

/** Folder of the test bed's cache, by kind and version. */
export function cached(name: string): string {
  return join(cacheDir(), 'testbed', name);
}

/** Fills a folder of the cache, whole or not at all. Does nothing when it is there. */
export async function fill(
  folder: string,
  say: (line: string) => void,
  what: string,
  make: (into: string) => Promise<void>,
): Promise<string> {
  if (existsSync(folder)) return folder;
  say(`${what} …`);
  const startedAt = Date.now();
  const scratch = join(dirname(folder), `.${basename(folder)}.${process.pid}`);
  rmSync(scratch, { recursive: true, force: true });
  mkdirSync(scratch, { recursive: true });
  try {
    await make(scratch);
    // Another run may have been first; its result is the same.
    if (!existsSync(folder)) renameSync(scratch, folder);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  say(`${what}: done in ${Math.round((Date.now() - startedAt) / 1000)} s`);
  return folder;
}

async function goBuild(tool: string, into: string, packages: readonly string[], flags: string): Promise<void> {
  const cwd = join(TESTBED, 'tools', tool);
  await run('go', ['version']).catch(() => {
    throw new Error('the test bed compiles Kubernetes: install Go 1.26 or newer (https://go.dev/dl)');
  });
  await run(
    'go',
    ['build', '-trimpath', '-buildvcs=false', '-ldflags', `-s -w ${flags}`, '-o', `${into}/`, ...packages],
    {
      cwd,
      env: { CGO_ENABLED: '0', GOFLAGS: '-mod=readonly' },
    },
  );
}

/**
 * The pinned programs, compiled where the cache does not have them (about 7 minutes on two cores). Those of
 * `KUBEBUILDER_ASSETS` are taken instead where that folder has them.
 */
export async function ensureBinaries(say: (line: string) => void): Promise<Binaries> {
  const versions = {
    kubernetes: pinned('kubernetes', 'k8s.io/kubernetes'),
    etcd: pinned('etcd', 'go.etcd.io/etcd/server/v3'),
    'agent-sandbox': pinned('agent-sandbox', 'sigs.k8s.io/agent-sandbox'),
  };
  const assets = process.env.KUBEBUILDER_ASSETS ?? '';
  const ready = (name: string): string | null =>
    assets !== '' && existsSync(join(assets, name)) ? join(assets, name) : null;

  const [, major, minor] = /^v(\d+)\.(\d+)\./.exec(versions.kubernetes) ?? [];
  const component = 'k8s.io/component-base/version';
  const stamp = `-X ${component}.gitVersion=${versions.kubernetes} -X ${component}.gitMajor=${major} -X ${component}.gitMinor=${minor}`;
  const given = KUBERNETES.filter((name) => ready(name) !== null);
  const needed = KUBERNETES.filter((name) => !given.includes(name));
  const all = cached(`kubernetes-${versions.kubernetes}`);
  const kubernetes = await fill(
    given.length === 0 || existsSync(all) ? all : `${all}-without-${given.join('-')}`,
    say,
    `compiling ${needed.join(', ')} ${versions.kubernetes} (5 minutes and more on two cores, once)`,
    (into) =>
      goBuild(
        'kubernetes',
        into,
        needed.map((name) => `k8s.io/kubernetes/cmd/${name}`),
        stamp,
      ),
  );
  const etcd =
    ready('etcd') ??
    join(
      await fill(cached(`etcd-${versions.etcd}`), say, `compiling etcd ${versions.etcd}`, async (into) => {
        await goBuild('etcd', into, ['tool'], '');
        // Go names it by its module's folder.
        renameSync(join(into, 'server'), join(into, 'etcd'));
      }),
      'etcd',
    );
  const agentSandbox = await fill(
    cached(`agent-sandbox-${versions['agent-sandbox']}`),
    say,
    `compiling agent-sandbox-controller ${versions['agent-sandbox']}`,
    async (into) => {
      await goBuild('agent-sandbox', into, ['tool'], '');
      const cwd = join(TESTBED, 'tools/agent-sandbox');
      const module = (await run('go', ['list', '-m', '-f', '{{.Dir}}', 'sigs.k8s.io/agent-sandbox'], { cwd })).trim();
      cpSync(join(module, 'helm/crds'), join(into, 'manifests/crds'), { recursive: true });
      for (const file of ['rbac.generated', 'extensions-rbac.generated', 'controller', 'extensions'])
        copyFileSync(join(module, 'k8s', `${file}.yaml`), join(into, 'manifests', `${file}.yaml`));
      // Modules lie in Go's cache read-only.
      await run('chmod', ['-R', 'u+w', into]);
    },
  );
  const source = readFileSync(join(TESTBED, 'tools/pause/main.go'));
  const pause = await fill(
    cached(`pause-${createHash('sha256').update(source).digest('hex').slice(0, 12)}`),
    say,
    'compiling the pause image',
    async (into) => {
      await goBuild('pause', into, ['.'], '');
      chmodSync(join(into, 'pause'), 0o755);
    },
  );
  const kube = (name: string): string => ready(name) ?? join(kubernetes, name);
  return {
    apiserver: kube('kube-apiserver'),
    controllerManager: kube('kube-controller-manager'),
    scheduler: kube('kube-scheduler'),
    kubelet: kube('kubelet'),
    etcd,
    agentSandbox: join(agentSandbox, 'agent-sandbox-controller'),
    pause: join(pause, 'pause'),
    agentSandboxManifests: join(agentSandbox, 'manifests'),
    versions,
  };
}
