import type { SandboxReason } from '@holdfast/contracts';
import type { Event, Node, Pod, Sandbox, SandboxWarmPool } from './kinds.ts';
import { ownerUid, reasonOf } from './sandbox.observe.ts';

/** How full a pool is. */
export interface PoolObservation {
  /** As it is asked to be. */
  readonly size: number;
  /** Warm and ready to be claimed, as the controller counted last. */
  readonly ready: number;
  /** What keeps it from being full; null when it is, or nothing is wrong so far. */
  readonly reason: SandboxReason | null;
}

/** A sandbox that may still be in the pool. */
export interface PoolMember {
  readonly sandbox: Sandbox;
  readonly pod: Pod | null;
  readonly node: Node | null;
  readonly events?: readonly Event[];
}

/** The controller says nothing about a pool that does not fill; its members do. */
export function observePool(pool: SandboxWarmPool, members: readonly PoolMember[], now: Date): PoolObservation {
  const size = pool.spec.replicas ?? 0;
  const ready = pool.status?.readyReplicas ?? 0;
  const reasons = members
    .filter(({ sandbox }) => pool.metadata.uid !== undefined && ownerUid(sandbox) === pool.metadata.uid)
    .map((member) => reasonOf({ claim: null, pool, ...member, now }, 'pending'))
    .filter((reason) => reason !== null && reason.code !== 'starting');
  return { size, ready, reason: ready >= size ? null : (reasons[0] ?? null) };
}
