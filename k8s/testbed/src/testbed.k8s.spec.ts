import { randomBytes } from 'node:crypto';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import {
  AuthenticationV1Api,
  AuthorizationV1Api,
  CoreV1Api,
  CustomObjectsApi,
  Exec,
  KubeConfig,
  Log,
  PatchStrategy,
  setHeaderOptions,
  type V1Pod,
  type V1PodSpec,
} from '@kubernetes/client-node';
import { isReady } from './cluster.ts';
import { until } from './commands.ts';
import { existingCluster, loadBed, RUNNER_IMAGE } from './settings.ts';
import { Testbed } from './testbed.ts';

const AUDIENCE = 'holdfast-hub';
const ANNOUNCE = `process.on('SIGTERM', () => process.exit(0)); console.log('up as ' + process.getuid()); setInterval(() => {}, 1e6)`;
const namespace = `testbed-${randomBytes(4).toString('hex')}`;
const config = new KubeConfig();
config.loadFromFile(existingCluster() ?? loadBed().kubeconfig);
const core = config.makeApiClient(CoreV1Api);
const custom = config.makeApiClient(CustomObjectsApi);

interface Conditioned {
  readonly metadata: { readonly name: string };
  readonly status?: {
    readonly conditions?: readonly { readonly type: string; readonly status: string }[];
    readonly readyReplicas?: number;
    readonly sandbox?: { readonly name: string };
  };
}

const extension = (plural: string) => ({ group: 'extensions.agents.x-k8s.io', version: 'v1beta1', namespace, plural });
const sandboxes = { group: 'agents.x-k8s.io', version: 'v1beta1', namespace, plural: 'sandboxes' };

async function create(plural: string, kind: string, name: string, spec: object): Promise<void> {
  const { group, version } = extension(plural);
  await custom.createNamespacedCustomObject({
    ...extension(plural),
    body: { apiVersion: `${group}/${version}`, kind, metadata: { name, namespace }, spec },
  });
}

async function read(where: ReturnType<typeof extension>, name: string): Promise<Conditioned> {
  return (await custom.getNamespacedCustomObject({ ...where, name })) as Conditioned;
}

const has = ({ status }: Conditioned, condition: string): boolean =>
  status?.conditions?.some(({ type, status: value }) => type === condition && value === 'True') === true;

/** Collects what a stream is given. */
function collector(): { readonly stream: Writable; readonly text: () => string } {
  const chunks: Buffer[] = [];
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      chunks.push(chunk);
      done();
    },
  });
  return { stream, text: () => Buffer.concat(chunks).toString() };
}

/** Runs a shell line in the pod's container. */
async function inPod(
  pod: string,
  line: string,
): Promise<{ readonly ok: boolean; readonly out: string; readonly err: string }> {
  const [out, err] = [collector(), collector()];
  const ok = await new Promise<boolean>((resolve, reject) => {
    new Exec(config)
      .exec(namespace, pod, 'main', ['sh', '-c', line], out.stream, err.stream, null, false, (status) =>
        resolve(status.status === 'Success'),
      )
      .catch(reject);
  });
  return { ok, out: out.text().trim(), err: err.text().trim() };
}

const podSpec = (): V1PodSpec => ({
  automountServiceAccountToken: false,
  terminationGracePeriodSeconds: 5,
  securityContext: {
    runAsNonRoot: true,
    runAsUser: 1000,
    runAsGroup: 1000,
    fsGroup: 1000,
    seccompProfile: { type: 'RuntimeDefault' },
  },
  containers: [
    {
      name: 'main',
      image: process.env.SANDBOX_IMAGE ?? RUNNER_IMAGE,
      imagePullPolicy: existingCluster() === null ? 'Never' : 'IfNotPresent',
      command: ['/opt/holdfast/node', '-e', ANNOUNCE],
      env: [{ name: 'SECRET_OF_THE_RUNNER', value: 'x' }],
      securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ['ALL'] } },
      volumeMounts: [
        { name: 'workspace', mountPath: '/workspace' },
        { name: 'token', mountPath: '/run/token', readOnly: true },
      ],
    },
  ],
  volumes: [
    {
      name: 'token',
      projected: { sources: [{ serviceAccountToken: { audience: AUDIENCE, path: 'token', expirationSeconds: 600 } }] },
    },
  ],
});

describe('the cluster', () => {
  let pod: V1Pod;
  const podName = (): string => pod.metadata?.name ?? '';

  beforeAll(async () => {
    await core.createNamespace({
      body: { metadata: { name: namespace, labels: { 'pod-security.kubernetes.io/enforce': 'restricted' } } },
    });
    await create('sandboxtemplates', 'SandboxTemplate', 'template', {
      networkPolicyManagement: 'Unmanaged',
      podTemplate: { spec: podSpec() },
      volumeClaimTemplates: [
        {
          metadata: { name: 'workspace' },
          spec: { accessModes: ['ReadWriteOnce'], resources: { requests: { storage: '100Mi' } } },
        },
      ],
    });
    await create('sandboxwarmpools', 'SandboxWarmPool', 'pool', {
      replicas: 2,
      sandboxTemplateRef: { name: 'template' },
    });
  });

  afterAll(async () => {
    await core.deleteNamespace({ name: namespace });
  });

  it('has nodes that are ready', async () => {
    const { items } = await core.listNode();
    expect(items.length).toBeGreaterThan(0);
    expect(items.filter((node) => !isReady(node))).toEqual([]);
  });

  it('fills a warm pool of two, and a claim gets one of them', async () => {
    const pools = extension('sandboxwarmpools');
    await until('the pool is full', async () => (await read(pools, 'pool')).status?.readyReplicas === 2, {
      timeoutMs: 120_000,
    });
    const warm = new Set((await core.listNamespacedPod({ namespace })).items.map(({ metadata }) => metadata?.name));
    await create('sandboxclaims', 'SandboxClaim', 'claim', { warmPoolRef: { name: 'pool' } });
    const claims = extension('sandboxclaims');
    await until('the claim is ready', async () => has(await read(claims, 'claim'), 'Ready'));
    const name = (await read(claims, 'claim')).status?.sandbox?.name ?? '';
    expect(warm).toContain(name);
    pod = await core.readNamespacedPod({ name, namespace });
    expect(pod.status?.phase).toBe('Running');
  });

  it('shows the log of a pod', async () => {
    const { stream, text } = collector();
    await new Log(config).log(namespace, podName(), 'main', stream);
    await until('the log has a line', () => text().includes('\n'));
    expect(text()).toBe('up as 1000\n');
  });

  it('runs commands in a pod as an ordinary user, who cannot look into the first process', async () => {
    expect(await inPod(podName(), 'id -u; pwd; node -p 1+1; rg --version | head -c 7')).toMatchObject({
      ok: true,
      out: '1000\n/workspace\n2\nripgrep',
    });
    expect((await inPod(podName(), 'exit 3')).ok).toBe(false);
    for (const file of ['environ', 'mem', 'fd/', 'cwd/']) {
      const { ok, err } = await inPod(podName(), `ls /proc/1/${file} && cat /proc/1/${file}`);
      expect({ file, ok, err }).toMatchObject({ file, ok: false, err: expect.stringContaining('Permission denied') });
    }
  });

  it('refuses a pod that is less confined than "restricted"', async () => {
    const containers = [{ name: 'main', image: RUNNER_IMAGE }];
    const refused = core.createNamespacedPod({ namespace, body: { metadata: { name: 'root' }, spec: { containers } } });
    await expect(refused).rejects.toMatchObject({ code: 403, body: expect.stringContaining('PodSecurity') });
  });

  it("tells from a pod's token which pod it is, for its audience only, and gives it no rights", async () => {
    const { out: token } = await inPod(podName(), 'cat /run/token/token');
    const review = async (audience: string) =>
      (
        await config
          .makeApiClient(AuthenticationV1Api)
          .createTokenReview({ body: { spec: { token, audiences: [audience] } } })
      ).status;
    const found = await review(AUDIENCE);
    expect(found?.authenticated).toBe(true);
    expect(found?.user?.username).toBe(`system:serviceaccount:${namespace}:default`);
    expect(found?.user?.groups).not.toContain('system:masters');
    expect(found?.user?.extra).toMatchObject({
      'authentication.kubernetes.io/pod-name': [podName()],
      'authentication.kubernetes.io/pod-uid': [pod.metadata?.uid],
    });
    expect((await review('another'))?.authenticated).toBeFalsy();

    const { status } = await config.makeApiClient(AuthorizationV1Api).createSubjectAccessReview({
      body: {
        spec: {
          user: found?.user?.username ?? '',
          groups: found?.user?.groups ?? [],
          resourceAttributes: { verb: 'get', resource: 'secrets', namespace },
        },
      },
    });
    expect(status?.allowed).toBe(false);
  });

  it('lets a pod reach its API server, which refuses a token of another audience', async () => {
    const server = config.getCurrentCluster()?.server ?? '';
    const { out } = await inPod(
      podName(),
      `curl -sk -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $(cat /run/token/token)" ${server}/api/v1/namespaces`,
    );
    expect(out).toBe('401');
  });

  it('keeps what a volume holds while its sandbox is suspended', async () => {
    expect((await inPod(podName(), 'echo kept > /workspace/file && echo lost > /tmp/file')).ok).toBe(true);
    const name = podName();
    const mode = (operatingMode: string) =>
      custom.patchNamespacedCustomObject(
        { ...sandboxes, name, body: { spec: { operatingMode } } },
        setHeaderOptions('Content-Type', PatchStrategy.MergePatch),
      );
    await mode('Suspended');
    await until('the sandbox is suspended', async () => has(await read(sandboxes, name), 'Suspended'));
    await mode('Running');
    await until('another pod is ready', async () => {
      const next = await core.readNamespacedPod({ name, namespace });
      const ready = next.status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True') === true;
      if (!ready || next.metadata?.uid === pod.metadata?.uid) return false;
      pod = next;
      return true;
    });
    expect(await inPod(name, 'cat /workspace/file; test ! -e /tmp/file')).toMatchObject({ ok: true, out: 'kept' });
  });

  // Breaking somebody else's cluster is not ours to do.
  if (existingCluster() === null) {
    const testbed = new Testbed();

    it('keeps its networks to itself: another bed that would share one is refused, and is gone without touching them', async () => {
      const { stateDir, prefix } = testbed.bed;
      const [first = 0, second = 0] = prefix.split('-').slice(1).map(Number);
      for (const away of [0, 1]) {
        const dir = await mkdtemp(join(tmpdir(), 'testbed-'));
        const subnet = `${first}.${second + away}`;
        const other = new Testbed(undefined, loadBed({ HOLDFAST_TESTBED_DIR: dir, HOLDFAST_TESTBED_SUBNET: subnet }));
        await expect(other.up(null)).rejects.toThrow(`the bed in ${stateDir} uses the networks of ${prefix}`);
        await other.down();
      }
      expect((await testbed.status()).filter(({ well }) => !well)).toEqual([]);
    });

    it('goes on after its API server and its controller were killed', async () => {
      for (const part of ['apiserver', 'controller']) await testbed.kill(part);
      await expect(core.listNode()).rejects.toThrow();
      for (const part of ['apiserver', 'controller']) await testbed.start(part);
      await create('sandboxclaims', 'SandboxClaim', 'later', { warmPoolRef: { name: 'pool' } });
      const claims = extension('sandboxclaims');
      await until('the claim is ready', async () => has(await read(claims, 'later'), 'Ready'));
    });

    it('notices within half a minute that a node has lost its power, and has it back afterwards, with its disk', async () => {
      const name = pod.spec?.nodeName ?? '';
      const state = async () => isReady(await core.readNode({ name }));
      await testbed.kill(name);
      await until('the node is not ready', async () => !(await state()), { timeoutMs: 30_000 });
      await testbed.start(name);
      expect(await state()).toBe(true);
      await until("the sandbox's pod runs again", async () => (await inPod(podName(), 'true')).ok);
      expect((await inPod(podName(), 'cat /workspace/file')).out).toBe('kept');
    });
  }
});
