import { isAppError, type SandboxReason, sameJson, sandboxOf } from '@holdfast/contracts';
import type { Logger } from '@holdfast/platform';
import type { LinkedSandbox } from '../host/linked-sandbox.ts';
import type { EnvironmentStore } from '../store/environment.store.ts';
import type { SandboxRow, SandboxStore } from '../store/sandbox.store.ts';
import type { ClusterView } from './cluster-view.ts';
import type { Driven, DrivenSandboxes } from './driven-sandboxes.ts';
import { KeyedQueue } from './keyed-queue.ts';
import { claimName, namespaceName } from './names.ts';
import type { Objects } from './objects.ts';
import { CALM_MS, type SandboxBinder } from './sandbox.binder.ts';
import { nextStep, type Patience, type Step } from './sandbox.decider.ts';
import type { SandboxObservation } from './sandbox.observe.ts';
import type { SandboxChanges } from './sandbox-changes.ts';

/** Nobody waits for it any more. */
const UNWANTED_MS = 60_000;
/** Between two looks at a sandbox while the cluster does not answer. */
const LOOK_MS = 1_000;
/** A runner that lives has dialled within this time after its container was started, or after it fell silent. */
const LINK_MS = 10_000;
/** What only its hub was the end of is linked again within this time: a hub may be restarted. */
const RELINK_MS = 45_000;
/** What a cache does not show yet is not done again before that. */
const SEEN_MS = 5_000;
/** What does not dial any more does not finish anything either. */
const HUNG_SECONDS = 2;
/** A reason that is over by itself sooner than that is not told. */
const PATIENT_MS = 1_500;
/** Whoever waits for one that is ready asks for it more often than that. */
const WANTED_MS = 15_000;
const UNREACHABLE: SandboxReason = { code: 'cluster-unreachable', message: 'The API server does not answer.' };
/** Steps for one sandbox in one go; more is a circle. */
const MAX_STEPS = 12;

export interface SandboxReconcilerParts {
  readonly view: ClusterView;
  readonly objects: Objects;
  readonly store: SandboxStore;
  readonly environments: EnvironmentStore;
  readonly driven: DrivenSandboxes;
  readonly binder: SandboxBinder;
  readonly changes: SandboxChanges;
  readonly logger: Logger;
  readonly installation: string;
  readonly idleMs: number;
  readonly nodeLostMs: number;
  readonly orphanMs: number;
}

/**
 * Brings sandboxes on. What should be is recorded in Postgres, what is comes from watches; whoever has a sandbox's row leased
 * takes the next step ({@link nextStep}) until nothing is left to do. What fails is tried again, later each time.
 */
export class SandboxReconciler {
  readonly #parts: SandboxReconcilerParts;
  readonly #queue: KeyedQueue;

  constructor(parts: SandboxReconcilerParts) {
    this.#parts = parts;
    this.#queue = new KeyedQueue({
      run: async (id) => {
        await this.#run(id);
        return null;
      },
      concurrency: 32,
      onError: (error, id, failures, retryMs) =>
        parts.logger.warn({ err: error, sandbox: id, failures, retryMs }, 'a sandbox could not be brought on'),
    });
    parts.view.onSandbox((id) => {
      const driven = parts.driven.of(id);
      if (driven !== null) this.lookAt(id, driven.linked?.linked === true ? CALM_MS : 0);
    });
  }

  /** Something about it may have changed; also one that is destroyed is looked at, for what it has on the cluster. */
  lookAt(id: string, afterMs = 0): void {
    this.#queue.add(id, afterMs);
  }

  /** Somebody wants it: drives it when nobody else does. */
  async drive(id: string, environment: SandboxRow['environment']): Promise<void> {
    const { driven, store } = this.#parts;
    const known = driven.of(id);
    if (known !== null) {
      known.environment = environment;
      this.lookAt(id);
      return;
    }
    const row = await store.own(id);
    if (row === null) return;
    if (row.status === 'suspended' || row.status === 'failed') await this.#begin(row, environment);
    driven.take(row).environment = environment;
    this.lookAt(id);
  }

  /** Takes nothing more; resolves when what runs has ended. */
  close(): Promise<void> {
    return this.#queue.close();
  }

  async #run(id: string): Promise<void> {
    const { store } = this.#parts;
    let row = (await store.byIds([id])).get(id) ?? null;
    const waiting = this.#parts.driven.of(id);
    if (!this.#parts.view.synced && waiting !== null && row !== null) {
      await this.#tell(row, waiting, UNREACHABLE);
      this.lookAt(id, LOOK_MS);
      return;
    }
    for (let n = 0; n < MAX_STEPS && row !== null; n++) {
      const driven = this.#parts.driven.of(id);
      if (row.status === 'destroyed') {
        await this.#parts.objects.removeClaim(row);
        if (row.claim !== null) await store.forgetClaim(id);
        return;
      }
      if (driven === null) return;
      // Also when it was said to rest and the answer was lost: whoever wants it must find it free.
      if (row.status === 'suspended' || row.status === 'failed') return this.#rested(id);
      const seen = this.#parts.view.observe(row);
      this.#follow(driven, seen);
      const step: Step = nextStep(
        {
          row,
          fresh: isFresh(row),
          linked: driven.linked?.linked === true,
          busy: driven.linked?.busy === true,
          sinceMs: driven.sinceMs,
          lastUsedMs: driven.linked?.lastUsedMs ?? driven.sinceMs,
          silent: driven.silent,
        },
        seen,
        this.#patience(row),
        Date.now(),
      );
      if (step.do === 'wait') {
        // Whoever holds the link may have failed to take it up when it was asked, or dialled, first.
        if (
          driven.linked?.linked !== true &&
          seen.phase === 'running' &&
          seen.podUid !== null &&
          seen.podUid === row.pod_uid
        )
          await this.#parts.binder.ask(row, seen.podUid);
        if (step.reason !== null && (await this.#corrected(row, driven))) {
          row = await this.#anew(row);
          continue;
        }
        await this.#tell(row, driven, this.#parts.view.healthy ? step.reason : UNREACHABLE);
        if (step.afterMs !== null) this.lookAt(id, step.afterMs);
        return;
      }
      const before: SandboxRow = row;
      row = await this.#do(step, before, driven, seen).catch(async (error: unknown) => {
        const reason = reasonOf(error);
        if (reason !== null) await this.#tell(before, driven, reason);
        throw error;
      });
    }
  }

  /** A container that has just been started, or is heard of again, has all the time to dial that any has. */
  #follow(driven: Driven, { containerId, reason }: SandboxObservation): void {
    const answering = reason?.code === 'node-lost' ? null : containerId;
    if (answering !== null && answering !== driven.answering && driven.linked?.linked !== true)
      driven.sinceMs = Date.now();
    driven.answering = answering;
  }

  #patience(row: SandboxRow): Patience {
    const { idle_seconds, max_lifetime_seconds } = sandboxOf(row.environment);
    return {
      idleMs: idle_seconds === null ? this.#parts.idleMs : idle_seconds * 1_000,
      lifetimeMs: max_lifetime_seconds === null ? null : max_lifetime_seconds * 1_000,
      unwantedMs: UNWANTED_MS,
      linkMs: LINK_MS,
      relinkMs: RELINK_MS,
      nodeLostMs: this.#parts.nodeLostMs,
    };
  }

  /** Takes a step; the row as it is then, or null when nothing more is to be done now. */
  async #do(
    step: Exclude<Step, { do: 'wait' }>,
    row: SandboxRow,
    driven: Driven,
    seen: SandboxObservation,
  ): Promise<SandboxRow | null> {
    const { store, logger } = this.#parts;
    const { id } = row;
    switch (step.do) {
      case 'claim': {
        const begun = row.claim === null ? await this.#begin(row, driven.environment ?? row.environment) : row;
        if (begun === null || begun.claim === null) return null;
        if (this.#once(driven, `claim ${begun.claim}`, id))
          await this.#parts.objects.claim(begun, new Date(Date.now() + this.#parts.orphanMs));
        return null;
      }
      case 'resume':
        if (this.#once(driven, `resume ${row.incarnation}`, id)) {
          await this.#parts.objects.refreshRunner(row);
          await this.#parts.objects.setMode(row, 'Running');
        }
        return null;
      case 'place': {
        if (seen.podUid === null || seen.pod === null) return null;
        const placed = await store.place(id, {
          pod: seen.pod,
          podUid: seen.podUid,
          node: seen.node,
          launch: isFresh(row) ? (seen.launch ?? 'cold') : 'resumed',
        });
        if (placed === null) return null;
        driven.sinceMs = Date.now();
        if (this.#parts.binder.links.of(seen.podUid) === null) await this.#parts.binder.ask(placed, seen.podUid);
        else await this.#parts.binder.bind(seen.podUid, id, placed);
        return (await store.byIds([id])).get(id) ?? null;
      }
      case 'bind':
        if (seen.podUid !== null) await this.#parts.binder.bind(seen.podUid, id);
        return (await store.byIds([id])).get(id) ?? null;
      case 'replace':
        if (seen.podUid === null || !(await this.#parts.driven.mine(id))) return null;
        if (this.#once(driven, `replace ${seen.podUid}`, id)) {
          logger.warn({ sandbox: id, pod: seen.pod, why: step.why }, 'a pod is replaced');
          // Where the cluster took longer to give the node up than the sandbox waits, this is all the time there is.
          if (step.force) await this.#tell(row, driven, seen.reason, 0);
          await this.#parts.objects.refreshRunner(row);
          await this.#parts.objects.removePod(row, { uid: seen.podUid, graceSeconds: step.force ? 0 : HUNG_SECONDS });
        }
        return null;
      case 'lost': {
        // The caches may be behind; a claim that is gone is gone for everybody.
        if (seen.phase === 'absent' && (await this.#parts.objects.hasClaim(row))) return this.#later(id);
        if (!(await this.#parts.driven.mine(id))) return null;
        driven.linked?.close();
        driven.linked = null;
        driven.sinceMs = Date.now();
        if (seen.phase === 'absent') {
          await store.mark(row, 'suspended', 'sandbox.lost', { incarnation: row.incarnation, reason: step.why });
          await store.forgetClaim(id);
          await this.#rested(id);
          return null;
        }
        await store.record(row, 'sandbox.lost', { incarnation: row.incarnation, reason: step.why });
        const again = await store.beginAgain(row);
        this.#parts.changes.tell(id);
        return again;
      }
      case 'rest':
        await this.#rest(row, driven, step.why);
        return null;
      case 'settle':
        if (!(await this.#parts.driven.mine(id))) return null;
        await store.mark(row, 'suspended', 'sandbox.suspended', { reason: 'it was suspended on the cluster' });
        await this.#rested(id);
        return null;
    }
  }

  /** Whether the environment was changed while a claim that never came to run waits: it may have been what kept it waiting. */
  async #corrected(row: SandboxRow, driven: Driven): Promise<boolean> {
    if (row.status !== 'starting' || !isFresh(row)) return false;
    const now = await this.#parts.environments.find(row.environment_id);
    if (now === null || now.retired || sameJson(sandboxOf(now.config), sandboxOf(row.environment))) return false;
    driven.environment = now.config;
    return true;
  }

  /** Another claim in place of one that nothing ran on. */
  async #anew(row: SandboxRow): Promise<SandboxRow | null> {
    const environment = this.#parts.driven.of(row.id)?.environment ?? row.environment;
    const begun = await this.#begin({ ...row, claim: null }, environment);
    await this.#parts.objects.removeClaim(row);
    return begun;
  }

  /** True when it was not done a moment ago; what was done cannot be seen at once. Looks again in a moment. */
  #once(driven: Driven, what: string, id: string): boolean {
    this.lookAt(id, 1_000);
    const nowMs = Date.now();
    if ((driven.done.get(what) ?? 0) > nowMs) return false;
    driven.done.set(what, nowMs + SEEN_MS);
    return true;
  }
  #later(id: string): null {
    this.lookAt(id, 500);
    return null;
  }

  /**
   * Suspends one that has a volume and gives the claim of another back. The row first: a runner that dials meanwhile is
   * not taken up again, and what is not done on the cluster when this process dies is done by housekeeping.
   */
  async #rest(row: SandboxRow, { linked }: Driven, why: string): Promise<void> {
    const { store, logger } = this.#parts;
    const usedMs = linked?.lastUsedMs;
    if (linked?.linked === true && !(await this.#kept(row, linked))) {
      this.#later(row.id);
      return;
    }
    if (!(await this.#parts.driven.mine(row.id))) return;
    if (linked?.lastUsedMs !== usedMs || linked?.retire() === false) {
      this.#later(row.id);
      return;
    }
    const keeps = sandboxOf(row.environment).workspace === 'volume';
    try {
      await store.mark(row, 'suspended', 'sandbox.suspended', { reason: why });
    } catch (error) {
      this.#parts.driven.letGo(row.id);
      throw error;
    }
    if (!keeps) await store.forgetClaim(row.id);
    await this.#rested(row.id);
    try {
      if (keeps) await this.#parts.objects.setMode(row, 'Suspended');
      else await this.#parts.objects.removeClaim(row);
    } catch (error) {
      logger.warn({ err: error, sandbox: row.id }, 'a resting sandbox could not be ended yet');
    }
  }

  /** Files are kept before what holds them goes (C1). False when that is to be tried again. */
  async #kept(row: SandboxRow, linked: LinkedSandbox): Promise<boolean> {
    try {
      await linked.keep();
      return true;
    } catch (error) {
      this.#parts.logger.warn({ err: error, sandbox: row.id }, 'a sandbox that is to rest could not be kept');
      // What holds too much, or has a runner that cannot, will not do better; that was told as an event.
      return isAppError(error) && error.kind !== 'unavailable';
    }
  }

  async #rested(id: string): Promise<void> {
    this.#parts.driven.letGo(id);
    await this.#parts.store.disown([id]);
    this.#parts.changes.tell(id);
  }

  /** Tells whoever waits why it takes long, when it does: once per reason of an incarnation. */
  async #tell(
    row: SandboxRow,
    driven: Driven,
    reason: SandboxReason | null,
    patientMs = reason?.code === 'pool-empty' ? 0 : PATIENT_MS,
  ): Promise<void> {
    const cutOff = row.status === 'ready' && driven.linked?.linked !== true && (row.unused_ms ?? WANTED_MS) < WANTED_MS;
    if (reason === null || reason.code === 'starting' || (row.status !== 'starting' && !cutOff)) {
      driven.reason = null;
      return;
    }
    const nowMs = Date.now();
    if (driven.reason?.code !== reason.code) driven.reason = { code: reason.code, sinceMs: nowMs };
    if (row.reason?.code === reason.code) return;
    const leftMs = driven.reason.sinceMs + patientMs - nowMs;
    if (leftMs > 0) {
      this.lookAt(row.id, leftMs);
      return;
    }
    await this.#parts.store.wait(row, reason);
    this.#parts.changes.tell(row.id);
  }

  /** It is wanted again: the next incarnation begins, on the claim that it has or on a new one. Null when it did already. */
  async #begin(row: SandboxRow, environment: SandboxRow['environment']): Promise<SandboxRow | null> {
    const { store } = this.#parts;
    if (row.claim !== null) return store.beginAgain(row);
    return store.beginClaim(row, {
      namespace: namespaceName(this.#parts.installation, row.workspace_id),
      claim: claimName(row.id, row.incarnation + 1),
      environment,
    });
  }
}

/** Nothing has run on its claim before this incarnation. */
function isFresh(row: SandboxRow): boolean {
  return row.claim === claimName(row.id, row.incarnation);
}

/** What an error of the cluster means for somebody who waits; null when it is none of the cluster's. */
function reasonOf(error: unknown): SandboxReason | null {
  if (!isAppError(error)) return null;
  const { message } = error;
  switch (error.code) {
    case 'cluster.unreachable':
      return { code: 'cluster-unreachable', message };
    case 'cluster.quota-exceeded':
      return { code: 'quota-exceeded', message };
    case 'cluster.refused':
      return { code: 'cluster-refused', message };
    default:
      return null;
  }
}
