import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Sandbox, SandboxEnvironment, SandboxReasonCode } from '@holdfast/contracts';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { AdmissionregistrationV1Api, Exec } from '@kubernetes/client-node';
import { existingCluster } from '../../../../k8s/testbed/src/settings.ts';
import { Testbed } from '../../../../k8s/testbed/src/testbed.ts';
import type { SandboxClaim } from './kinds.ts';
import { type ClusteredPlatform, startOnCluster, type Tenant, until } from './test/clustered-platform.ts';

/** The cluster's own signs of a lost node take so long on the test bed; see its README. */
const NODE_GRACE_MS = 10_000;
const NODE_LOST_MS = 15_000;
const QUOTA_CPU_MILLIS = 20_000;
/** A program that sleeps, in an image that every node of the bed has: it never dials. */
const PAUSE = 'localhost/holdfast/pause:testbed';

let platform: ClusteredPlatform;
let tenant: Tenant;
beforeAll(async () => {
  platform = await startOnCluster({
    SANDBOX_MEMORY_BYTES: String(256 * 1024 ** 2),
    SANDBOX_CPU_MILLIS: '500',
    SANDBOX_QUOTA_CPU_MILLIS: String(QUOTA_CPU_MILLIS),
    SANDBOX_NODE_LOST_MS: String(NODE_LOST_MS),
    SANDBOX_WAIT_MS: '150000',
  });
  tenant = platform.first;
}, 240_000);
afterAll(async () => {
  process.stdout.write(`reasons, in ms after the cause was there:\n${figures.join('\n')}\n`);
  await platform.stop();
}, 120_000);

const figures: string[] = [];
let names = 0;
const environment = (sandbox: Partial<SandboxEnvironment>) =>
  tenant.environment(`reason-${++names}`, { workspace: 'ephemeral', ...sandbox });

interface Told {
  readonly event: Record<string, unknown>;
  readonly sandbox: Sandbox;
}

/** Waits until the session's events and its sandbox tell the reason; notes how long both took since then. */
async function told(
  session: string,
  code: SandboxReasonCode,
  sinceMs = Date.now(),
  patienceMs = 30_000,
): Promise<Told> {
  let eventMs: number | null = null;
  let sandboxMs: number | null = null;
  const found = await until(
    `${code} is told`,
    async () => {
      const errors = (await tenant.client.events(session)).filter(({ type }) => type === 'session.error');
      const event = errors
        .map((one) => one['error'] as Record<string, unknown>)
        .find((one) => one['x_reason'] === code);
      if (event !== undefined) eventMs ??= Date.now() - sinceMs;
      const sandbox = await tenant.sandboxIfAny(session);
      if (sandbox?.reason?.code !== code) return null;
      sandboxMs ??= Date.now() - sinceMs;
      return event === undefined ? null : { event, sandbox };
    },
    patienceMs,
  );
  figures.push(`${code}: event ${eventMs}, sandbox ${sandboxMs}: ${found.sandbox.reason?.message}`);
  expect(found.event).toEqual({
    type: 'unknown_error',
    message: `The sandbox cannot be had yet: ${found.sandbox.reason?.message}`,
    retry_status: { type: 'retrying' },
    x_reason: code,
  });
  // One that is cut off is what it was until its node is given up.
  const status = code === 'node-lost' || code === 'not-linked' ? /^(starting|ready)$/ : /^starting$/;
  expect(found.sandbox).toMatchObject({
    status: expect.stringMatching(status),
    reason: { hint: expect.stringMatching(/.{20}/) },
  });
  expect(found.sandbox.reason?.since).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/);
  expect(Math.abs(Date.parse(found.sandbox.reason?.since ?? '') - Date.now())).toBeLessThan(patienceMs + 10_000);
  expect(Math.max(eventMs ?? 0, sandboxMs ?? 0)).toBeLessThanOrEqual(10_000 + (patienceMs - 30_000));
  return found;
}

/** Waits for the answer to what the session was asked for, without being asked again, and that nothing is wrong any more. */
async function goesOn(session: string, what: string, timeoutMs = 60_000): Promise<void> {
  const beganMs = Date.now();
  await tenant.client.untilIdle(session, timeoutMs);
  figures.push(`${what}: went on ${Date.now() - beganMs} after the cause was gone`);
  expect((await tenant.results(session)).at(-1)).toEqual({
    text: expect.stringMatching(/(^|\n)here\n$/),
    isError: false,
  });
  expect(await tenant.sandbox(session)).toMatchObject({ status: 'ready', reason: null });
}

describe('what the environment asks for and cannot be had is told, and goes on when the environment is corrected', () => {
  type Wrong = [string, SandboxReasonCode, () => Partial<SandboxEnvironment>, Partial<SandboxEnvironment>];
  const withoutRunner: Wrong = ['an image without a runner', 'not-linked', () => ({ image: PAUSE }), { image: null }];
  it.each<Wrong>([
    [
      'a node that is not there',
      'unschedulable',
      () => ({ node_selector: { 'holdfast.dev/none': 'such' } }),
      { node_selector: {} },
    ],
    [
      'more memory than a node has',
      'unschedulable',
      () => ({ memory_mib: largestNodeMib + 1_024 }),
      { memory_mib: null },
    ],
    ['an image that is not there', 'image-pull', () => ({ image: 'none.invalid/none/such:1' }), { image: null }],
    [
      'a storage class that is not there',
      'volume-pending',
      () => ({ workspace: 'volume', storage_class: 'none-such' }),
      { storage_class: null },
    ],
    [
      'more than the quota of the workspace',
      'quota-exceeded',
      () => ({ cpu_millis: QUOTA_CPU_MILLIS + 1_000 }),
      { cpu_millis: null },
    ],
    ...(existingCluster() === null ? [withoutRunner] : []),
  ])(
    '%s: %s',
    async (what, code, wrong, right) => {
      const id = await environment(wrong());
      const session = await tenant.session({ environment_id: id });
      await tenant.say(session, 'RUN[echo here]');
      expect((await told(session, code)).sandbox).toMatchObject({ session_id: session, environment_id: id });
      await tenant.change(id, right);
      await goesOn(session, what);
    },
    120_000,
  );

  let largestNodeMib = 0;
  beforeAll(async () => {
    const sizes = (await platform.core.listNode()).items.map(({ status }) =>
      Number.parseInt(status?.allocatable?.['memory'] ?? '0', 10),
    );
    largestNodeMib = Math.ceil(Math.max(...sizes) / 1024);
  });
});

describe('what passes by itself', () => {
  it('quota-exceeded, until another session gives back what it took', async () => {
    const id = await environment({ cpu_millis: 12_000 });
    const [first, second] = [
      await tenant.session({ environment_id: id }),
      await tenant.session({ environment_id: id }),
    ];
    await tenant.run(first, 'echo here');
    await tenant.say(second, 'RUN[echo here]');
    expect((await told(second, 'quota-exceeded')).sandbox.reason?.message).toMatch(/exceeded quota: workspace/);
    await sleep(5_000);
    await tenant.client.json(`/v1/sessions/${first}`, { method: 'DELETE' });
    await goesOn(second, 'quota');
  }, 120_000);

  it('pool-empty, and all are served', async () => {
    const id = await environment({ pool_size: 1 });
    await until('the pool is full', async () => ((await pool(id))?.ready === 1 ? true : null));
    // More than can be made warm again in the time that they take to ask.
    const sessions = await Promise.all(Array.from({ length: 4 }, () => tenant.session({ environment_id: id })));
    await Promise.all(sessions.map((session) => tenant.say(session, 'RUN[echo here]')));
    await Promise.all(sessions.map((session) => goesOn(session, 'pool')));
    const launches = await Promise.all(sessions.map((session) => tenant.sandbox(session)));
    expect(new Set(launches.map(({ launch }) => launch))).toEqual(new Set(['cold', 'warm']));
    const cold = sessions[launches.findIndex(({ launch }) => launch === 'cold')] ?? '';
    const reasons = (await tenant.client.events(cold))
      .filter(({ type }) => type === 'session.error')
      .map((event) => (event['error'] as Record<string, unknown>)['x_reason']);
    expect(reasons).toEqual(['pool-empty']);
    await tenant.change(id, { pool_size: 0 });
  }, 120_000);
  const pool = async (id: string) =>
    (await tenant.client.json<{ data: { environment_id: string; ready: number }[] }>('/v1/x/sandbox_pools')).data.find(
      ({ environment_id }) => environment_id === id,
    );

  it('cluster-refused, while a policy of the cluster forbids it, in that policy’s words', async () => {
    const session = await tenant.session({ environment_id: await environment({}) });
    const policies = platform.config.makeApiClient(AdmissionregistrationV1Api);
    const name = `holdfast-spec-${platform.installation}`;
    const namespace = platform.namespaceOf('wrkspc_default');
    await policies.createValidatingAdmissionPolicy({
      body: {
        metadata: { name },
        spec: {
          matchConstraints: {
            namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': namespace } },
            resourceRules: [
              {
                apiGroups: ['extensions.agents.x-k8s.io'],
                apiVersions: ['*'],
                operations: ['CREATE'],
                resources: ['sandboxclaims'],
              },
            ],
          },
          validations: [{ expression: 'false', message: 'no claims on Sundays' }],
        },
      },
    });
    await policies.createValidatingAdmissionPolicyBinding({
      body: { metadata: { name }, spec: { policyName: name, validationActions: ['Deny'] } },
    });
    try {
      const probe: SandboxClaim = {
        apiVersion: 'extensions.agents.x-k8s.io/v1beta1',
        kind: 'SandboxClaim',
        metadata: { name: 'probe', namespace },
        spec: { warmPoolRef: { name: 'none' } },
      };
      await until('the policy is in force', async () => {
        const made = await platform.admin.create(probe).catch(() => null);
        if (made === null) return true;
        await platform.admin.remove(probe);
        return null;
      });
      await tenant.say(session, 'RUN[echo here]');
      expect((await told(session, 'cluster-refused')).sandbox.reason?.message).toMatch(/no claims on Sundays/);
    } finally {
      await policies.deleteValidatingAdmissionPolicyBinding({ name });
      await policies.deleteValidatingAdmissionPolicy({ name });
    }
    await goesOn(session, 'refusing policy');
  }, 120_000);

  it('crash-loop, when the runner ends again and again', async () => {
    const session = await tenant.session({ environment_id: await environment({}) });
    await tenant.run(session, 'echo here');
    const { pod, namespace } = await tenant.sandbox(session);
    const sinceMs = await crash(pod ?? '', namespace ?? '', 2);
    await tenant.say(session, 'RUN[echo here]');
    const { sandbox } = await told(session, 'crash-loop', sinceMs);
    expect(sandbox.reason?.message).toMatch(/ended \d times; the last time with exit code 137/);
    await goesOn(session, 'crash loop', 90_000);
  }, 180_000);

  /** Kills the runner so often; when it was seen to be dead the last time. */
  async function crash(pod: string, namespace: string, times: number): Promise<number> {
    const exec = new Exec(platform.config);
    const status = async () =>
      (await platform.admin.get('Pod', pod, namespace))?.status?.containerStatuses?.find(
        ({ name }) => name === 'runner',
      );
    for (let n = 1; n <= times; n++) {
      await until(
        'the runner runs',
        async () => ((await status())?.state?.running === undefined ? null : true),
        60_000,
      );
      const kill = ['sh', '-c', "kill -9 $(pgrep -f '[r]unner.mjs$')"];
      const socket = await exec.exec(namespace, pod, 'runner', kill, new PassThrough(), null, null, false);
      await until('the runner is dead', async () => {
        const now = await status();
        return (now?.restartCount ?? 0) >= n || now?.state?.running === undefined ? true : null;
      });
      socket.close();
    }
    return Date.now();
  }
});

// Breaking somebody else's cluster is not ours to do.
if (existingCluster() === null) {
  describe('what breaks', () => {
    it('cluster-unreachable, while the API server is away, before a claim and after it', async () => {
      const testbed = new Testbed();
      const [before, after] = [
        await tenant.session({ environment_id: await environment({}) }),
        await tenant.session({ environment_id: await environment({ node_selector: { 'holdfast.dev/none': 'such' } }) }),
      ];
      await tenant.say(after, 'RUN[echo here]');
      await told(after, 'unschedulable');
      await testbed.kill('apiserver');
      try {
        const sinceMs = Date.now();
        await tenant.say(before, 'RUN[echo here]');
        const both = [before, after].map((session) => told(session, 'cluster-unreachable', sinceMs));
        expect(await Promise.all(both)).toHaveLength(2);
      } finally {
        await testbed.start('apiserver');
      }
      await goesOn(before, 'API server');
      await tenant.client.json(`/v1/sessions/${after}/events`, { json: { events: [{ type: 'user.interrupt' }] } });
    }, 180_000);

    it('node-lost, until the sandbox is made elsewhere', async () => {
      const testbed = new Testbed();
      const session = await tenant.session({ environment_id: await environment({}) });
      await tenant.run(session, 'echo here');
      const { node } = await tenant.sandbox(session);
      await testbed.kill(node ?? '');
      try {
        const sinceMs = Date.now();
        await tenant.say(session, 'RUN[echo here]');
        await told(session, 'not-linked', sinceMs);
        await told(session, 'node-lost', sinceMs, 30_000 + NODE_GRACE_MS);
        await goesOn(session, 'node');
        expect((await tenant.sandbox(session)).node).not.toBe(node);
      } finally {
        await testbed.start(node ?? '');
      }
    }, 180_000);
  });
}
