import type { SandboxReason, SandboxReasonCode } from '@holdfast/contracts';
import type { Condition, Event, Node, ObjectMeta, Pod, Sandbox, SandboxClaim, SandboxWarmPool } from './kinds.ts';
import { RUNNER } from './pod.manifest.ts';

/** What a sandbox is on the cluster. */
export interface SandboxObservation {
  /**
   * `running`: its container runs and nothing takes it away; on a node that does not answer it is the last that was
   * heard, with the reason `node-lost`. `ended`: its pod is over and nobody will replace it. `ending`: its claim is
   * going, or is gone before the rest.
   */
  readonly phase: 'absent' | 'pending' | 'running' | 'suspending' | 'suspended' | 'ended' | 'ending';
  /** Of the pod that belongs to it, also while that goes. */
  readonly podUid: string | null;
  readonly pod: string | null;
  readonly node: string | null;
  /** Of the container that runs; another one has another journal. */
  readonly containerId: string | null;
  readonly restarts: number;
  readonly launch: 'warm' | 'cold' | null;
  /** Why it does not run (well); null where nothing is to be told. */
  readonly reason: SandboxReason | null;
}

/** What is known of one sandbox; nothing of it need belong together, which is looked at here. */
export interface SandboxParts {
  readonly claim: SandboxClaim | null;
  readonly sandbox: Sandbox | null;
  readonly pod: Pod | null;
  /** The pod's. */
  readonly node: Node | null;
  /** That the claim is made from. */
  readonly pool: SandboxWarmPool | null;
  /** Warnings about the pod. */
  readonly events?: readonly Event[];
  readonly now: Date;
}

/** So often it has ended in a loop, the last time within {@link LOOP_MS}. */
const LOOP_ENDS = 3;
const LOOP_MS = 10 * 60_000;
const MESSAGE_CHARS = 500;

/** Of an object's controller, by which alone it belongs to another; a name may come again. */
export function ownerUid(object: { readonly metadata: ObjectMeta }): string | null {
  return object.metadata.ownerReferences?.find((owner) => owner.controller === true)?.uid ?? null;
}

export function observeSandbox(parts: SandboxParts): SandboxObservation {
  const { claim, now } = parts;
  const sandbox = claim === null || owns(claim, parts.sandbox) ? parts.sandbox : null;
  const pod = owns(sandbox, parts.pod) ? parts.pod : null;
  const node = pod?.spec?.nodeName !== undefined && pod.spec.nodeName === parts.node?.metadata.name ? parts.node : null;
  const phase = phaseOf(claim, sandbox, pod);
  const running = runnerOf(pod)?.state?.running !== undefined;
  const launch = sandbox?.metadata.labels?.['agents.x-k8s.io/launch-type'];
  const told = phase === 'running' || phase === 'pending' || phase === 'absent' || phase === 'ended';
  return {
    phase,
    podUid: pod?.metadata.uid ?? null,
    pod: pod?.metadata.name ?? null,
    node: pod?.spec?.nodeName ?? null,
    containerId: running ? (runnerOf(pod)?.containerID ?? null) : null,
    restarts: runnerOf(pod)?.restartCount ?? 0,
    launch: launch === 'warm' || launch === 'cold' ? launch : null,
    reason: told ? reasonOf({ ...parts, sandbox, pod, node, now }, phase) : null,
  };
}

function owns(
  owner: { readonly metadata: ObjectMeta } | null,
  object: { readonly metadata: ObjectMeta } | null,
): boolean {
  return owner?.metadata.uid !== undefined && object !== null && ownerUid(object) === owner.metadata.uid;
}

function phaseOf(claim: SandboxClaim | null, sandbox: Sandbox | null, pod: Pod | null): SandboxObservation['phase'] {
  if (claim === null) return sandbox === null && pod === null ? 'absent' : 'ending';
  if (claim.metadata.deletionTimestamp !== undefined || readyOf(claim)?.reason === 'ClaimExpired') return 'ending';
  if (sandbox === null || sandbox.metadata.deletionTimestamp !== undefined) return 'pending';
  if (sandbox.spec.operatingMode === 'Suspended') {
    return pod === null && fresh(sandbox, 'Suspended')?.status === 'True' ? 'suspended' : 'suspending';
  }
  // A pod that is taken away is made anew by the controller; one that has come to its end by itself never is.
  if (pod === null || pod.metadata.deletionTimestamp !== undefined) return 'pending';
  if (isOver(pod)) return 'ended';
  return pod.status?.phase === 'Running' && runnerOf(pod)?.state?.running !== undefined ? 'running' : 'pending';
}

function isOver(pod: Pod): boolean {
  return pod.status?.phase === 'Failed' || pod.status?.phase === 'Succeeded';
}

/** Why a sandbox, claimed or still in its pool, is not there: the most particular that is known. */
export function reasonOf(parts: SandboxParts, phase: SandboxObservation['phase']): SandboxReason | null {
  const { claim, sandbox, pod, pool } = parts;
  const particular =
    lostNode(parts) ??
    (phase === 'running' ? null : refusal(parts)) ??
    waiting(pod) ??
    crashes(pod, parts.now) ??
    (phase === 'running' || phase === 'absent' ? null : (scheduling(pod) ?? warned(parts.events ?? [], parts.now)));
  if (particular !== null || phase === 'running' || phase === 'absent') return particular;
  if (pod !== null && isOver(pod)) {
    const why = [pod.status?.reason, pod.status?.message].filter((part) => part !== undefined).join(': ');
    return reason('starting', `Its pod is over (${why === '' ? pod.status?.phase : why}) and is replaced.`);
  }
  if (pod?.metadata.deletionTimestamp !== undefined) return reason('starting', 'Its pod is being replaced.');
  if (claim !== null && sandbox !== null && startedColdFrom(pool, sandbox)) {
    return reason('pool-empty', `None of the ${pool?.spec.replicas} warm sandboxes was left; it starts cold.`);
  }
  return reason('starting', 'It is being made.');
}

function startedColdFrom(pool: SandboxWarmPool | null, sandbox: Sandbox): boolean {
  return (pool?.spec.replicas ?? 0) > 0 && sandbox.metadata.labels?.['agents.x-k8s.io/launch-type'] === 'cold';
}

function lostNode({ node, pod }: SandboxParts): SandboxReason | null {
  const disrupted = pod?.status?.conditions?.find(
    ({ type, status }) => type === 'DisruptionTarget' && status === 'True',
  );
  if (node !== null) {
    const ready = node.status?.conditions?.find(({ type }) => type === 'Ready');
    const unreachable = node.spec?.taints?.some(({ key }) => key === 'node.kubernetes.io/unreachable') === true;
    if (unreachable || (ready !== undefined && ready.status !== 'True')) {
      return reason('node-lost', `Node ${node.metadata.name} does not answer: ${ready?.message ?? 'unreachable'}`);
    }
  }
  // An eviction is announced first, and may still be refused.
  if (disrupted === undefined || pod?.metadata.deletionTimestamp === undefined) return null;
  return reason(
    'node-lost',
    `It was taken off node ${pod?.spec?.nodeName ?? '?'} (${disrupted.reason ?? 'disruption'}): ${disrupted.message ?? ''}`,
  );
}

/** The controller's lookups go through caches and its writes through locks: these pass by themselves. */
const PASSING =
  /the object has been modified|Operation cannot be fulfilled|already exists|context (?:canceled|deadline)/;
const REFUSALS = new Set(['InvalidMetadata', 'EnvVarsInjectionRejected', 'VolumeClaimTemplatesError', 'MultiplePods']);

/** What the API server or the controller refused. */
function refusal({ claim, sandbox, pool }: SandboxParts): SandboxReason | null {
  // The claim's condition is the sandbox's, forwarded with the sandbox's generation; the sandbox's own comes sooner.
  const ready = sandbox === null ? (claim === null ? null : readyOf(claim)) : fresh(sandbox, 'Ready');
  if (ready === null || ready.status === 'True') return null;
  if (ready.reason === 'ReconcilerError') {
    if (/exceeded quota/.test(ready.message)) return reason('quota-exceeded', ready.message);
    return PASSING.test(ready.message) ? null : reason('cluster-refused', ready.message);
  }
  if (REFUSALS.has(ready.reason)) return reason('cluster-refused', `${ready.reason}: ${ready.message}`);
  // Right after a pool was made the controller may not have seen it.
  if ((ready.reason === 'WarmPoolNotFound' || ready.reason === 'TemplateNotFound') && pool === null) {
    return reason('cluster-refused', ready.message);
  }
  return null;
}

const IMAGE = new Set([
  'ErrImagePull',
  'ImagePullBackOff',
  'InvalidImageName',
  'ErrImageNeverPull',
  'ImageInspectError',
  'RegistryUnavailable',
  'SignatureValidationFailed',
]);
/** The kubelet or its runtime does not make the container. */
const NOT_MADE = new Set(['CreateContainerConfigError', 'CreateContainerError', 'RunContainerError']);

function waiting(pod: Pod | null): SandboxReason | null {
  const state = runnerOf(pod)?.state?.waiting;
  if (state?.reason === undefined) return null;
  const message = `${state.reason}: ${state.message ?? runnerOf(pod)?.image ?? ''}`;
  if (IMAGE.has(state.reason)) return reason('image-pull', message);
  return NOT_MADE.has(state.reason) ? reason('cluster-refused', message) : null;
}

function crashes(pod: Pod | null, now: Date): SandboxReason | null {
  const status = runnerOf(pod);
  if (status === null || status.restartCount === 0) return null;
  const last = status.state?.terminated ?? status.lastState?.terminated;
  // The kubelet starts it again at once the first time only; that it waits it says late, or not at all.
  const backOff = status.state?.waiting?.reason === 'CrashLoopBackOff' || status.state?.terminated !== undefined;
  const recent = last?.finishedAt !== undefined && now.getTime() - Date.parse(last.finishedAt) < LOOP_MS;
  const ends = status.restartCount + (status.state?.running === undefined ? 1 : 0);
  if (!backOff && !(ends >= LOOP_ENDS && recent)) return null;
  const how =
    last === undefined
      ? ''
      : `; the last time ${last.reason === 'OOMKilled' ? 'it ran out of memory (OOMKilled)' : `with exit code ${last.exitCode}`}${last.message === undefined ? '' : `: ${last.message}`}`;
  return reason('crash-loop', `Its runner ended ${ends} times${how}`);
}

const VOLUME =
  /unbound immediate PersistentVolumeClaims|persistent volumes to bind|persistentvolumeclaim .* (?:not found|being deleted)/i;

function scheduling(pod: Pod | null): SandboxReason | null {
  const scheduled = pod?.status?.conditions?.find(({ type }) => type === 'PodScheduled');
  if (scheduled?.status !== 'False') return null;
  const message = scheduled.message ?? scheduled.reason ?? '';
  return reason(VOLUME.test(message) ? 'volume-pending' : 'unschedulable', message);
}

/** What has not been said again for so long has passed. */
const WARNED_MS = 5 * 60_000;
const WARNED: ReadonlyMap<string, SandboxReasonCode> = new Map([
  ['FailedMount', 'volume-pending'],
  ['FailedAttachVolume', 'volume-pending'],
  ['FailedMapVolume', 'volume-pending'],
  ['ProvisioningFailed', 'volume-pending'],
  ['FailedCreatePodSandBox', 'cluster-refused'],
]);

function warned(events: readonly Event[], now: Date): SandboxReason | null {
  const known = events
    .filter((event) => event.type === 'Warning' && WARNED.has(event.reason ?? ''))
    .filter((event) => now.getTime() - seenAt(event) < WARNED_MS)
    .sort((a, b) => seenAt(b) - seenAt(a))[0];
  const code = WARNED.get(known?.reason ?? '');
  return known === undefined || code === undefined ? null : reason(code, `${known.reason}: ${known.message ?? ''}`);
}

function seenAt(event: Event): number {
  return (
    Date.parse(
      event.series?.lastObservedTime ??
        event.lastTimestamp ??
        event.eventTime ??
        event.metadata.creationTimestamp ??
        '',
    ) || 0
  );
}

function runnerOf(pod: Pod | null): NonNullable<NonNullable<Pod['status']>['containerStatuses']>[number] | null {
  return pod?.status?.containerStatuses?.find(({ name }) => name === RUNNER) ?? null;
}

function readyOf(object: Sandbox | SandboxClaim): Condition | null {
  return object.status?.conditions?.find(({ type }) => type === 'Ready') ?? null;
}

/** A condition of a sandbox that speaks of what the sandbox is asked to be now. */
function fresh(sandbox: Sandbox, type: 'Ready' | 'Suspended'): Condition | null {
  const found = sandbox.status?.conditions?.find((condition) => condition.type === type);
  return found === undefined || (found.observedGeneration ?? 0) < (sandbox.metadata.generation ?? 0) ? null : found;
}

function reason(code: SandboxReasonCode, message: string): SandboxReason {
  const line = message.replaceAll(/\s+/g, ' ').trim();
  return { code, message: line.length > MESSAGE_CHARS ? `${line.slice(0, MESSAGE_CHARS - 1)}…` : line };
}
