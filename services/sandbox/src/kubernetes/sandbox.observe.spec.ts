import { readFileSync } from 'node:fs';
import { describe, expect, it } from '@jest/globals';
import type { Node, Pod, SandboxWarmPool } from './kinds.ts';
import { observePool } from './pool.observe.ts';
import { observeSandbox, ownerUid, type SandboxObservation, type SandboxParts } from './sandbox.observe.ts';

type Complete = { readonly [K in 'claim' | 'sandbox' | 'pool']: NonNullable<SandboxParts[K]> } & SandboxParts;

/** Objects of a real cluster (Kubernetes 1.36.3, agent-sandbox v0.5.6), cut down to what is read of them. */
const recorded = JSON.parse(readFileSync(new URL('test/recorded.json', import.meta.url), 'utf8')) as Readonly<
  Record<string, unknown>
>;
const lively = recorded['node'] as Node;
const now = new Date('2026-11-24T12:31:00Z');

function scene(name: string): Complete {
  const parts = recorded[name] as Complete;
  return { ...parts, node: parts.node ?? lively, now };
}
/** With a deep change of one part. */
function changed<T>(object: T, change: (copy: Mutable<T>) => void): T {
  const copy = structuredClone(object);
  change(copy as Mutable<T>);
  return copy;
}
type Mutable<T> = T extends object ? { -readonly [K in keyof T]: Mutable<T[K]> } : T;
const pod = (parts: SandboxParts, change: (copy: Mutable<Pod>) => void): Pod => {
  if (parts.pod === null) throw new Error('no pod was recorded');
  return changed(parts.pod, change);
};
const deleting = '2026-11-24T12:30:59Z';

describe('what was recorded on a cluster', () => {
  it.each<[string, SandboxObservation['phase'], string | null, RegExp]>([
    ['running', 'running', null, /^$/],
    ['warm', 'running', null, /^$/],
    ['node-lost', 'running', 'node-lost', /^Node node-1 does not answer: Kubelet stopped posting node status\.$/],
    ['suspending', 'suspending', null, /^$/],
    ['suspended', 'suspended', null, /^$/],
    ['unschedulable', 'pending', 'unschedulable', /^0\/2 nodes are available: 2 node\(s\) didn't match/],
    ['volume-pending', 'pending', 'volume-pending', /unbound immediate PersistentVolumeClaims/],
    ['quota-exceeded', 'pending', 'quota-exceeded', /exceeded quota: workspace, requested: pods=1/],
    ['image-pull', 'pending', 'image-pull', /^(?:ErrImagePull|ImagePullBackOff): .*127\.0\.0\.1:1\/none:1/],
    ['crash-loop', 'pending', 'crash-loop', /^Its runner ended \d+ times; the last time with exit code 139/],
    ['cluster-refused', 'pending', 'cluster-refused', /RuntimeClass "gvisor" not found/],
  ])('%s is seen as %s with the reason %s', (name, phase, code, message) => {
    const observed = observeSandbox(scene(name));
    expect(observed.phase).toBe(phase);
    expect(observed.reason?.code ?? null).toBe(code);
    expect(observed.reason?.message ?? '').toMatch(message);
  });

  it('says which pod and container run where, and whether they were warm', () => {
    const warm = scene('warm');
    expect(observeSandbox(warm)).toMatchObject({
      pod: warm.pod?.metadata.name,
      podUid: warm.pod?.metadata.uid,
      node: warm.pod?.spec?.nodeName,
      containerId: expect.stringMatching(/^containerd:\/\/[0-9a-f]{64}$/),
      restarts: 0,
      launch: 'warm',
    });
    expect(observeSandbox(scene('running')).launch).toBe('cold');
    expect(observeSandbox(scene('suspended'))).toMatchObject({ pod: null, podUid: null, containerId: null });
  });

  it('keeps every message on one line and short', () => {
    for (const name of Object.keys(recorded).filter((key) => key !== 'node')) {
      expect(observeSandbox(scene(name)).reason?.message ?? '').toMatch(/^[^\n]{0,500}$/);
    }
  });
});

describe('what belongs together is said by UIDs alone', () => {
  it('so a pod of the same name that another sandbox owns is none of it', () => {
    const parts = scene('running');
    const stranger = pod(parts, (copy) => {
      for (const owner of copy.metadata.ownerReferences ?? []) owner.uid = 'other';
    });
    expect(observeSandbox({ ...parts, pod: stranger })).toMatchObject({ phase: 'pending', podUid: null, node: null });
  });

  it('so a sandbox of an older claim of the same name is none of it', () => {
    const parts = scene('running');
    const claim = changed(parts.claim, (copy) => {
      copy.metadata.uid = 'newer';
    });
    expect(observeSandbox({ ...parts, claim })).toMatchObject({ phase: 'pending', podUid: null, launch: null });
  });

  it('so an owner that is not the controller owns nothing', () => {
    expect(
      ownerUid({ metadata: { name: 'x', ownerReferences: [{ apiVersion: 'v1', kind: 'X', name: 'x', uid: 'u' }] } }),
    ).toBeNull();
  });
});

describe('a running sandbox', () => {
  const parts = scene('running');

  it('runs as soon as its container does, although nobody has called it ready yet', () => {
    const sandbox = changed(parts.sandbox, (copy) => {
      copy.status = {};
    });
    const claim = changed(parts.claim, (copy) => {
      copy.status = {};
    });
    expect(observeSandbox({ ...parts, claim, sandbox }).phase).toBe('running');
  });

  it('is pending while its pod is taken away, although the sandbox is still called ready', () => {
    const gone = pod(parts, (copy) => {
      copy.metadata.deletionTimestamp = deleting;
    });
    expect(observeSandbox({ ...parts, pod: gone })).toMatchObject({
      phase: 'pending',
      podUid: parts.pod?.metadata.uid,
      reason: { code: 'starting', message: 'Its pod is being replaced.' },
    });
  });

  it('is pending, not over, when a pod that is taken away comes to its end: it is replaced anyway', () => {
    const gone = pod(parts, (copy) => {
      copy.metadata.deletionTimestamp = deleting;
      copy.status = { ...copy.status, phase: 'Succeeded' };
    });
    const sandbox = changed(parts.sandbox, (copy) => {
      copy.status?.conditions?.push({
        type: 'Finished',
        status: 'True',
        reason: 'PodSucceeded',
        message: '',
        lastTransitionTime: deleting,
      });
    });
    expect(observeSandbox({ ...parts, sandbox, pod: gone }).phase).toBe('pending');
    expect(observeSandbox({ ...parts, sandbox, pod: null }).phase).toBe('pending');
  });

  it.each(['Failed', 'Succeeded'])('has ended when its pod is %s and nobody takes it away', (phase) => {
    const over = pod(parts, (copy) => {
      copy.status = {
        ...copy.status,
        phase,
        reason: 'Evicted',
        message: 'Usage of EmptyDir volume "work" exceeds the limit "64Mi".',
      };
    });
    expect(observeSandbox({ ...parts, pod: over })).toMatchObject({
      phase: 'ended',
      reason: {
        code: 'starting',
        message:
          'Its pod is over (Evicted: Usage of EmptyDir volume "work" exceeds the limit "64Mi".) and is replaced.',
      },
    });
  });

  it.each([
    ['Unknown', 'Kubelet stopped posting node status.'],
    ['False', 'container runtime is down'],
  ])('is on a lost node when that is ready: %s', (status, message) => {
    const node = changed(lively, (copy) => {
      for (const condition of copy.status?.conditions ?? []) Object.assign(condition, { status, message });
    });
    expect(observeSandbox({ ...parts, node })).toMatchObject({
      phase: 'running',
      reason: { code: 'node-lost', message: `Node node-1 does not answer: ${message}` },
    });
  });

  it('is on a lost node when that is tainted as unreachable', () => {
    const node = changed(lively, (copy) => {
      copy.spec = { taints: [{ key: 'node.kubernetes.io/unreachable', effect: 'NoExecute' }] };
    });
    expect(observeSandbox({ ...parts, node }).reason?.code).toBe('node-lost');
  });

  it('does not mind another node', () => {
    const node = changed(lively, (copy) => {
      copy.metadata.name = 'node-9';
      copy.status = { conditions: [{ type: 'Ready', status: 'False' }] };
    });
    expect(observeSandbox({ ...parts, node }).reason).toBeNull();
  });

  it('was taken off its node by a disruption, once that takes it away', () => {
    const evicted = (deletionTimestamp?: string): Pod =>
      pod(parts, (copy) => {
        copy.status?.conditions?.push({
          type: 'DisruptionTarget',
          status: 'True',
          reason: 'EvictionByEvictionAPI',
          message: 'Eviction API: evicting',
        });
        if (deletionTimestamp !== undefined) copy.metadata.deletionTimestamp = deletionTimestamp;
      });
    expect(observeSandbox({ ...parts, pod: evicted() })).toMatchObject({ phase: 'running', reason: null });
    expect(observeSandbox({ ...parts, pod: evicted(deleting) })).toMatchObject({
      phase: 'pending',
      reason: {
        code: 'node-lost',
        message: 'It was taken off node node-1 (EvictionByEvictionAPI): Eviction API: evicting',
      },
    });
  });

  it('that has come up again and again is in a crash loop for a while, and memory is named', () => {
    const crashed = pod(parts, (copy) => {
      for (const status of copy.status?.containerStatuses ?? []) {
        status.restartCount = 3;
        status.lastState = { terminated: { exitCode: 137, reason: 'OOMKilled', finishedAt: '2026-11-24T12:30:50Z' } };
      }
    });
    expect(observeSandbox({ ...parts, pod: crashed })).toMatchObject({
      phase: 'running',
      restarts: 3,
      reason: {
        code: 'crash-loop',
        message: 'Its runner ended 3 times; the last time it ran out of memory (OOMKilled)',
      },
    });
    expect(observeSandbox({ ...parts, pod: crashed, now: new Date('2026-11-24T13:30:00Z') }).reason).toBeNull();
  });

  it('that has ended again is in a crash loop before the kubelet says that it waits; the first time it is just started again', () => {
    const terminated = { exitCode: 137, reason: 'Error', finishedAt: '2026-11-24T12:30:50Z' };
    const ended = (restarts: number) =>
      pod(parts, (copy) => {
        for (const status of copy.status?.containerStatuses ?? []) {
          status.restartCount = restarts;
          status.state = { terminated };
          if (restarts > 0) status.lastState = { terminated };
        }
      });
    expect(observeSandbox({ ...parts, pod: ended(0) })).toMatchObject({
      phase: 'pending',
      reason: { code: 'starting' },
    });
    expect(observeSandbox({ ...parts, pod: ended(1) })).toMatchObject({
      phase: 'pending',
      reason: { code: 'crash-loop', message: 'Its runner ended 2 times; the last time with exit code 137' },
    });
  });
});

describe('a sandbox that comes and goes', () => {
  const parts = scene('running');
  const bare = { ...parts, sandbox: null, pod: null, node: null };

  it('is absent without a claim', () => {
    expect(observeSandbox({ ...bare, claim: null })).toEqual({
      phase: 'absent',
      podUid: null,
      pod: null,
      node: null,
      containerId: null,
      restarts: 0,
      launch: null,
      reason: null,
    });
  });

  it('is ending while anything is left of it', () => {
    const claim = changed(parts.claim, (copy) => {
      copy.metadata.deletionTimestamp = deleting;
    });
    expect(observeSandbox({ ...parts, claim }).phase).toBe('ending');
    expect(observeSandbox({ ...parts, claim: null })).toMatchObject({
      phase: 'ending',
      podUid: parts.pod?.metadata.uid,
    });
    const expired = changed(parts.claim, (copy) => {
      for (const condition of copy.status?.conditions ?? [])
        Object.assign(condition, { status: 'False', reason: 'ClaimExpired' });
    });
    expect(observeSandbox({ ...parts, claim: expired }).phase).toBe('ending');
  });

  it('is pending from its claim on, without anything being wrong', () => {
    expect(observeSandbox(bare)).toMatchObject({ phase: 'pending', reason: { code: 'starting' } });
  });

  it('is suspended only when the controller has seen that it should be', () => {
    const suspended = scene('suspended');
    const before = changed(suspended.sandbox, (copy) => {
      copy.metadata.generation = 99;
    });
    expect(observeSandbox({ ...suspended, sandbox: before }).phase).toBe('suspending');
    const resumed = changed(suspended.sandbox, (copy) => {
      copy.spec.operatingMode = 'Running';
    });
    expect(observeSandbox({ ...suspended, sandbox: resumed })).toMatchObject({
      phase: 'pending',
      reason: { code: 'starting' },
    });
  });

  it('is suspending until its last pod is gone', () => {
    const suspended = scene('suspended');
    const late = pod(parts, (copy) => {
      for (const owner of copy.metadata.ownerReferences ?? []) owner.uid = suspended.sandbox.metadata.uid ?? '';
      copy.metadata.deletionTimestamp = deleting;
    });
    expect(observeSandbox({ ...suspended, pod: late }).phase).toBe('suspending');
  });

  it('starts cold where its pool had nothing left, and says so', () => {
    const cold = scene('unschedulable');
    const pool = changed(cold.pool, (copy) => {
      copy.spec.replicas = 5;
    });
    const scheduled = pod(cold, (copy) => {
      copy.status = { phase: 'Pending' };
    });
    expect(observeSandbox({ ...cold, pool, pod: scheduled }).reason).toEqual({
      code: 'pool-empty',
      message: 'None of the 5 warm sandboxes was left; it starts cold.',
    });
    expect(observeSandbox({ ...cold, pool }).reason?.code).toBe('unschedulable');
  });
});

describe('what the controller says', () => {
  const saying = (reason: string, message: string, pool: SandboxWarmPool | null = null) => {
    const parts = scene('running');
    const claim = changed(parts.claim, (copy) => {
      copy.status = {
        conditions: [
          { type: 'Ready', status: 'False', reason, message, lastTransitionTime: deleting, observedGeneration: 1 },
        ],
      };
    });
    return observeSandbox({ ...parts, claim, sandbox: null, pod: null, pool }).reason?.code;
  };

  it.each<[string, string, string]>([
    ['InvalidMetadata', 'label domain not allowed', 'cluster-refused'],
    ['EnvVarsInjectionRejected', 'not allowed by the template policy', 'cluster-refused'],
    ['VolumeClaimTemplatesError', 'disallowed', 'cluster-refused'],
    ['WarmPoolNotFound', 'SandboxWarmPool "x" not found', 'cluster-refused'],
    ['ReconcilerError', 'Error seen: sandbox create error: exceeded quota: q, requested: pods=1', 'quota-exceeded'],
    [
      'ReconcilerError',
      'Error seen: pods "x" is forbidden: violates PodSecurity "restricted:latest"',
      'cluster-refused',
    ],
    ['ReconcilerError', 'Error seen: Operation cannot be fulfilled on sandboxes "x"', 'starting'],
    ['AdoptionConflict', 'the next pass retries from a converged view', 'starting'],
    ['SandboxCreatePending', 'waiting for cache to converge', 'starting'],
    ['DependenciesNotReady', 'Pod does not exist', 'starting'],
  ])('%s: %s is told as %s', (reason, message, code) => {
    expect(saying(reason, message)).toBe(code);
  });

  it('about a pool that is there is no refusal: it has not seen it yet', () => {
    expect(saying('WarmPoolNotFound', 'SandboxWarmPool "x" not found', scene('running').pool)).toBe('starting');
  });

  it('before it saw the newest sandbox is not taken', () => {
    const parts = scene('quota-exceeded');
    const sandbox = changed(parts.sandbox, (copy) => {
      copy.metadata.generation = 2;
    });
    expect(observeSandbox({ ...parts, sandbox }).reason?.code).toBe('starting');
  });
});

describe('what the kubelet says', () => {
  const parts = scene('image-pull');
  const waiting = (reason: string, message = 'why') =>
    pod(parts, (copy) => {
      for (const status of copy.status?.containerStatuses ?? []) status.state = { waiting: { reason, message } };
    });
  const event = (reason: string, lastTimestamp: string, message = 'm') => ({
    apiVersion: 'v1' as const,
    kind: 'Event' as const,
    metadata: { name: reason },
    involvedObject: {},
    type: 'Warning',
    reason,
    message,
    lastTimestamp,
  });

  it.each([
    ['ErrImagePull', 'image-pull'],
    ['ImagePullBackOff', 'image-pull'],
    ['InvalidImageName', 'image-pull'],
    ['ErrImageNeverPull', 'image-pull'],
    ['CreateContainerConfigError', 'cluster-refused'],
    ['RunContainerError', 'cluster-refused'],
    ['ContainerCreating', 'starting'],
  ])('a container that waits for %s is told as %s', (reason, code) => {
    expect(observeSandbox({ ...parts, events: [], pod: waiting(reason) }).reason?.code).toBe(code);
  });

  it('the newest warning is told while nothing better is known', () => {
    const events = [
      event('FailedCreatePodSandBox', '2026-11-24T12:30:00Z'),
      event('FailedMount', '2026-11-24T12:30:30Z', 'Unable to attach or mount volumes'),
      event('BackOff', '2026-11-24T12:30:50Z'),
    ];
    expect(observeSandbox({ ...parts, events, pod: waiting('ContainerCreating') }).reason).toEqual({
      code: 'volume-pending',
      message: 'FailedMount: Unable to attach or mount volumes',
    });
  });

  it('a warning that is not repeated has passed', () => {
    const events = [event('FailedMount', '2026-11-24T12:20:00Z')];
    expect(observeSandbox({ ...parts, events, pod: waiting('ContainerCreating') }).reason?.code).toBe('starting');
  });
});

describe('a pool', () => {
  const member = scene('unschedulable');
  const pool = changed(member.pool, (copy) => {
    copy.spec.replicas = 2;
    copy.status = { replicas: 2, readyReplicas: 1 };
  });
  const pooled = changed(member.sandbox, (copy) => {
    copy.metadata.ownerReferences = [
      { apiVersion: 'x', kind: 'SandboxWarmPool', name: 'p', uid: pool.metadata.uid ?? '', controller: true },
    ];
  });

  it('says what keeps its members from being ready', () => {
    expect(observePool(pool, [{ sandbox: pooled, pod: member.pod, node: null }], now)).toMatchObject({
      size: 2,
      ready: 1,
      reason: { code: 'unschedulable' },
    });
  });

  it('does not speak for sandboxes that were claimed', () => {
    expect(observePool(pool, [{ sandbox: member.sandbox, pod: member.pod, node: null }], now).reason).toBeNull();
  });

  it('has no reason when it is full, or fills', () => {
    const full = changed(pool, (copy) => {
      copy.status = { readyReplicas: 2 };
    });
    expect(observePool(full, [{ sandbox: pooled, pod: member.pod, node: null }], now).reason).toBeNull();
    expect(observePool(pool, [{ sandbox: pooled, pod: null, node: null }], now)).toEqual({
      size: 2,
      ready: 1,
      reason: null,
    });
  });
});
