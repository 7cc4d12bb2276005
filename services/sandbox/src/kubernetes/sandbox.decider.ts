import type { SandboxReason } from '@holdfast/contracts';
import type { SandboxRow } from '../store/sandbox.store.ts';
import type { SandboxObservation } from './sandbox.observe.ts';

/** What the owner of a sandbox knows of it beside the cluster. */
export interface Known {
  readonly row: Pick<SandboxRow, 'status' | 'claim' | 'pod_uid' | 'unused_ms' | 'lived_ms'>;
  /** Nothing has run on its claim before this incarnation. */
  readonly fresh: boolean;
  /** A proven link of this sandbox's pod stands in this replica. */
  readonly linked: boolean;
  readonly busy: boolean;
  /** Its link ended because nothing was heard of it. */
  readonly silent: boolean;
  /** Since when it is what it is: linked or not linked, in milliseconds of this process' clock. */
  readonly sinceMs: number;
  readonly lastUsedMs: number;
}

export interface Patience {
  readonly idleMs: number;
  readonly lifetimeMs: number | null;
  /** One that starts is given up when nobody has asked for it for so long. */
  readonly unwantedMs: number;
  /** A runner that lives has dialled within this time, or again after it fell silent. */
  readonly linkMs: number;
  /** One that was linked has this time where its hub, and not its silence, ended the link: hubs are restarted. */
  readonly relinkMs: number;
  readonly nodeLostMs: number;
}

export type Step =
  | { readonly do: 'claim' }
  | { readonly do: 'resume' }
  /** The pod of this incarnation is known: record it, and ask for its link. */
  | { readonly do: 'place' }
  | { readonly do: 'bind' }
  /** Delete the pod; the controller makes another one on the same files. */
  | { readonly do: 'replace'; readonly force: boolean; readonly why: string }
  /** What ran has ended: the next pod is another incarnation. */
  | { readonly do: 'lost'; readonly why: string }
  /** Nobody needs it: give it back, or suspend it. */
  | { readonly do: 'rest'; readonly why: string }
  /** Somebody suspended it, or the platform did and died: the row follows. */
  | { readonly do: 'settle' }
  | { readonly do: 'wait'; readonly reason: SandboxReason | null; readonly afterMs: number | null };

const CLAIM_DELETED = 'its claim was deleted';
/** A runner has dialled by then unless something is wrong. */
const DIAL_MS = 2_000;
const NOT_LINKED: SandboxReason = {
  code: 'not-linked',
  message: 'Its pod runs, and its runner has not dialled the hub.',
};

const wait = (reason: SandboxReason | null, afterMs: number | null): Step => ({ do: 'wait', reason, afterMs });

/**
 * The next step for a sandbox, from what is recorded and what the cluster shows; done again and again until it is `wait`.
 * Level, not edge: it does not matter which changes were seen.
 */
export function nextStep(known: Known, seen: SandboxObservation, patience: Patience, nowMs: number): Step {
  const { row } = known;
  if (row.status !== 'starting' && row.status !== 'ready') return wait(null, null);

  if (row.status === 'starting') {
    if ((row.unused_ms ?? 0) > patience.unwantedMs)
      return { do: 'rest', why: 'it was not ready while somebody wanted it' };
    if (row.claim === null) return { do: 'claim' };
    switch (seen.phase) {
      case 'absent':
        // What the claim kept is gone with it.
        return known.fresh ? { do: 'claim' } : { do: 'lost', why: CLAIM_DELETED };
      case 'suspended':
        return { do: 'resume' };
      case 'ended':
        return { do: 'replace', force: false, why: 'its pod had ended' };
      case 'running':
        if (seen.podUid !== row.pod_uid) return { do: 'place' };
        return known.linked ? { do: 'bind' } : unlinked(known, seen, patience, nowMs);
      case 'pending':
      case 'suspending':
      case 'ending':
        return lostNode(known, seen, patience, nowMs) ?? wait(seen.reason, 1_000);
    }
  }

  if (row.claim === null) return { do: 'claim' };
  switch (seen.phase) {
    case 'absent':
      return { do: 'lost', why: CLAIM_DELETED };
    case 'suspended':
      // A runner that is linked has not heard of it, or the cluster's view here is of before it was resumed.
      return known.linked ? wait(null, 1_000) : { do: 'settle' };
    case 'ended':
      return { do: 'lost', why: seen.reason?.message ?? 'its pod ended' };
    case 'ending':
      // Somebody deleted the claim: that is final, and said once it is gone.
      return wait(null, 500);
    case 'pending':
    case 'suspending':
      // Until the pod is gone its runner may still tell what it had done.
      return known.linked
        ? (lostNode(known, seen, patience, nowMs) ?? wait(null, 1_000))
        : { do: 'lost', why: seen.reason?.message ?? 'its pod went away' };
    case 'running':
      if (seen.podUid !== row.pod_uid) return { do: 'lost', why: 'its pod was replaced' };
      return known.linked ? resting(known, patience, nowMs) : unlinked(known, seen, patience, nowMs);
  }
}

function resting(known: Known, patience: Patience, nowMs: number): Step {
  if (known.busy) return wait(null, Math.min(patience.idleMs, 5_000));
  const idleLeftMs = patience.idleMs - (nowMs - known.lastUsedMs);
  if (idleLeftMs <= 0) return { do: 'rest', why: 'idle' };
  if (patience.lifetimeMs === null || known.row.lived_ms === null) return wait(null, idleLeftMs);
  const lifeLeftMs = patience.lifetimeMs - known.row.lived_ms;
  return lifeLeftMs <= 0
    ? { do: 'rest', why: 'it reached its maximum lifetime' }
    : wait(null, Math.min(idleLeftMs, lifeLeftMs));
}

/** Its pod runs and its runner does not dial: it hangs, is restarted, or its node is gone. */
function unlinked(known: Known, seen: SandboxObservation, patience: Patience, nowMs: number): Step {
  const lost = lostNode(known, seen, patience, nowMs);
  if (lost !== null) return lost;
  const waitedMs = nowMs - known.sinceMs;
  const leftMs = (known.row.status === 'ready' && !known.silent ? patience.relinkMs : patience.linkMs) - waitedMs;
  if (leftMs > 0) return wait(seen.reason ?? (waitedMs >= DIAL_MS ? NOT_LINKED : null), Math.min(leftMs, 1_000));
  if (seen.reason?.code === 'crash-loop' || seen.reason?.code === 'node-lost') return wait(seen.reason, 1_000);
  return { do: 'replace', force: false, why: 'its runner did not dial' };
}

/** A pod on a node that is gone never ends by itself. */
function lostNode(known: Known, seen: SandboxObservation, patience: Patience, nowMs: number): Step | null {
  if (seen.reason?.code !== 'node-lost' || known.linked || seen.podUid === null) return null;
  const leftMs = patience.nodeLostMs - (nowMs - known.sinceMs);
  return leftMs > 0
    ? wait(seen.reason, Math.min(leftMs, 1_000))
    : { do: 'replace', force: true, why: `its node ${seen.node ?? ''} does not answer` };
}
