import { EventEmitter } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Registration } from '@holdfast/bus';
import {
  AppError,
  type BindBody,
  type ClaimBody,
  committedSubject,
  type EnsureSandboxBody,
  type EnsureSandboxReply,
  isAppError,
  type SandboxReason,
  type ServiceBeat,
  sameJson,
  sandboxLinkSubject,
  sandboxOf,
  streamOf,
} from '@holdfast/contracts';
import { LinkedSandbox } from '../host/linked-sandbox.ts';
import type { HostParts, SandboxHost } from '../host/sandbox-host.port.ts';
import type { ClusterDoorOptions } from '../hub/cluster-door.ts';
import type { RunnerLink } from '../hub/runner-link.ts';
import { EnvironmentStore } from '../store/environment.store.ts';
import type { SandboxRow } from '../store/sandbox.store.ts';
import { ClusterStore } from './cluster.store.ts';
import type { Cluster } from './cluster.ts';
import { ClusterView } from './cluster-view.ts';
import { Housekeeping } from './housekeeping.ts';
import { KeyedQueue } from './keyed-queue.ts';
import { claimName, namespaceName } from './names.ts';
import { Objects } from './objects.ts';
import { type HeldLink, PodLinks } from './pod-links.ts';
import { nextStep, type Patience, type Step } from './sandbox.decider.ts';
import type { SandboxObservation } from './sandbox.observe.ts';
import type { ClusterSettings } from './settings.manifest.ts';

const RENEW_MS = 2_000;
const ADOPT_MS = 3_000;
const TIDY_MS = 5_000;
const MEASURE_MS = 2_000;
/** Measuring takes at most this share of the time. */
const MEASURE_SHARE = 1 / 20;
const CLAIM_MS = 3_000;
const BIND_MS = 5_000;
/** Whoever waits says so again and again. */
const TOUCH_MS = 5_000;
/** Nobody waits for it any more. */
const UNWANTED_MS = 60_000;
/** Between two looks at a sandbox that somebody waits for; it is woken before that when something changes. */
const LOOK_MS = 1_000;
/** A runner that lives has dialled within this time, whatever happened to its link or its container. */
const LINK_MS = 10_000;
/** What changes of a sandbox that serves calls is not urgent, and comes in rows: should it end, its link tells first. */
const CALM_MS = 250;
/** What a cache does not show yet is not done again before that. */
const SEEN_MS = 5_000;
/** What does not dial any more does not finish anything either. */
const HUNG_SECONDS = 2;
/** A reason that is over by itself sooner than that is not told. */
const PATIENT_MS = 1_500;
const UNREACHABLE: SandboxReason = { code: 'cluster-unreachable', message: 'The API server does not answer.' };
/** Steps for one sandbox in one go; more is a circle. */
const MAX_STEPS = 12;

export interface KubernetesOptions {
  readonly settings: ClusterSettings;
  readonly door: Pick<ClusterDoorOptions, 'host' | 'port' | 'tls'>;
  readonly idleMs: number;
  readonly nodeLostMs: number;
  /** A claim that is not renewed for so long is removed by the cluster. */
  readonly orphanMs: number;
  readonly workspaceBytes: number;
}

/** A sandbox that this replica has the right to drive. */
interface Driven {
  linked: LinkedSandbox | null;
  sinceMs: number;
  readyAtMs: number | null;
  /** The container that runs on a node that answers. */
  answering: string | null;
  /** The environment as whoever asked for it last knows it. */
  environment: SandboxRow['environment'] | null;
  reason: { readonly code: SandboxReason['code']; readonly sinceMs: number } | null;
  measureAtMs: number;
  /** What was done and cannot be seen yet: by step and name, until when it is not done again. */
  readonly done: Map<string, number>;
}

/**
 * Sandboxes as agent-sandbox resources. What should be is recorded in Postgres, what is comes from watches; whoever has a
 * sandbox's row leased takes the next step ({@link nextStep}) until nothing is left to do. A runner's link lands on any
 * replica: that one takes the lease and serves the calls, which find it over the bus.
 */
export class KubernetesHost implements SandboxHost {
  readonly name = 'kubernetes';
  readonly isolation = 'container';
  readonly #parts: HostParts;
  readonly #options: KubernetesOptions;
  readonly #view: ClusterView;
  readonly #objects: Objects;
  readonly #rows: ClusterStore;
  readonly #environments: EnvironmentStore;
  readonly #queue: KeyedQueue;
  readonly #driven = new Map<string, Driven>();
  readonly #links: PodLinks;
  readonly #binding = new Map<RunnerLink, Promise<EnsureSandboxReply>>();
  readonly #signals = new EventEmitter().setMaxListeners(0);
  readonly #over = new AbortController();
  readonly #registrations: Registration[] = [];

  private constructor(parts: HostParts, options: KubernetesOptions, cluster: Cluster) {
    this.#parts = parts;
    this.#options = options;
    this.#rows = new ClusterStore(parts.pool);
    this.#environments = new EnvironmentStore(parts.pool);
    this.#view = new ClusterView(cluster, options.settings.installation);
    this.#objects = new Objects(cluster, this.#view, options.settings);
    this.#queue = new KeyedQueue({
      run: async (id) => {
        await this.#reconcile(id);
        return null;
      },
      concurrency: 32,
      onError: (error, id, failures, retryMs) =>
        parts.logger.warn({ err: error, sandbox: id, failures, retryMs }, 'a sandbox could not be brought on'),
    });
    this.#links = new PodLinks({
      ...parts,
      cluster,
      view: this.#view,
      rows: this.#rows,
      door: options.door,
      bind: (podUid, sandboxId) => this.#bind(podUid, sandboxId),
      onLost: (podUid) => this.#onLost(podUid),
    });
  }

  static async start(parts: HostParts, cluster: Cluster, options: KubernetesOptions): Promise<KubernetesHost> {
    const host = new KubernetesHost(parts, options, cluster);
    await host.#start();
    return host;
  }

  async #start(): Promise<void> {
    const { bus, logger } = this.#parts;
    this.#view.onSandbox((id) => {
      const driven = this.#driven.get(id);
      if (driven !== undefined) this.#queue.add(id, driven.linked?.linked === true ? CALM_MS : 0);
    });
    this.#registrations.push(
      bus.subscribeLive('live.sandbox.*.committed', (_body, subject) => {
        const [, , stream = ''] = subject.split('.');
        this.#signals.emit(stream);
      }),
    );
    await this.#links.listen();
    const housekeeping = new Housekeeping({
      view: this.#view,
      objects: this.#objects,
      rows: this.#rows,
      store: this.#parts.store,
      environments: this.#environments,
      orphanMs: this.#options.orphanMs,
      logger,
    });
    this.#repeat(RENEW_MS, () => this.#renew());
    this.#repeat(ADOPT_MS, () => this.#adopt());
    this.#repeat(TIDY_MS, () => housekeeping.run());
    this.#repeat(MEASURE_MS, () => this.#measure());
  }

  figures(): ServiceBeat['figures'] {
    const linked = [...this.#driven.values()].filter((one) => one.linked?.linked === true).length;
    return {
      served: this.#driven.size,
      linked,
      warm: this.#links.size - linked,
      refused_links: this.#links.refused,
      isolation: this.isolation,
      cluster: this.#view.healthy,
    };
  }

  async close(): Promise<void> {
    this.#over.abort();
    for (const registration of this.#registrations.splice(0)) void registration.stop();
    const ids = [...this.#driven.keys()];
    await this.#queue.close();
    for (const id of ids) this.#letGo(id);
    await this.#links.close();
    await this.#view.stop();
    await this.#parts.store.disown(ids).catch(() => undefined);
  }

  // What callers ask for.

  async ensure(
    body: EnsureSandboxBody,
    deadlineAtMs: number,
    tell: (reason: SandboxReason) => void,
  ): Promise<EnsureSandboxReply> {
    const { store } = this.#parts;
    const { row: found, made } = await store.request(body, this.name, (id) => ({
      namespace: namespaceName(this.#options.settings.installation, body.workspaceId),
      claim: claimName(id, 1),
    }));
    let row = found;
    if (made) this.#take(row);
    let touchAtMs = made ? Date.now() + TOUCH_MS : 0;
    // Its record as ready is not waited for: what was run says the runner's journal, whatever becomes of the record.
    const linked = (): boolean => row.status === 'starting' && this.#driven.get(row.id)?.linked?.linked === true;
    for (;;) {
      if (row.status === 'ready' || linked()) {
        const reply = await this.#claim(row.id, body.generation);
        if (reply !== null) return reply;
      }
      if (Date.now() >= touchAtMs) {
        await store.touch(row.id);
        touchAtMs = Date.now() + TOUCH_MS;
      }
      const changed = this.#nextChange(row.id, Math.min(LOOK_MS, deadlineAtMs - Date.now()));
      await this.#drive(row.id, body.environment);
      if (row.reason !== null && row.reason.code !== null) tell({ code: row.reason.code, message: row.reason.message });
      await changed;
      if (linked() && Date.now() < deadlineAtMs) continue;
      const now = await store.ofSession(body.sessionId);
      if (now === null) throw new AppError('unavailable', 'sandbox.gone', 'The sandbox was destroyed meanwhile.');
      row = now;
      if (Date.now() >= deadlineAtMs)
        throw new AppError('unavailable', 'sandbox.starting', row.reason?.message ?? 'The sandbox is still starting.');
    }
  }

  async destroy(row: SandboxRow, recorded: () => Promise<void>): Promise<void> {
    await recorded();
    this.#letGo(row.id);
    // When the API server cannot be reached now, or this process dies: housekeeping removes what no row needs.
    this.#queue.add(row.id);
  }

  /** Asks whoever holds the link; null when nobody does right now. */
  async #claim(id: string, generation: number): Promise<EnsureSandboxReply | null> {
    try {
      const mine = this.#driven.get(id)?.linked;
      if (mine?.linked === true) return await mine.claim(generation);
      return await this.#parts.bus.request<EnsureSandboxReply>(
        sandboxLinkSubject(id, 'claim'),
        { generation } satisfies ClaimBody,
        { timeoutMs: CLAIM_MS },
      );
    } catch (error) {
      if (isAppError(error) && error.kind === 'unavailable') return null;
      throw error;
    }
  }

  /** Drives it when nobody else does. */
  async #drive(id: string, environment: SandboxRow['environment']): Promise<void> {
    const driven = this.#driven.get(id);
    if (driven !== undefined) {
      driven.environment = environment;
      this.#queue.add(id);
      return;
    }
    const row = await this.#parts.store.own(id);
    if (row === null) return;
    if (row.status === 'suspended' || row.status === 'failed') await this.#begin(row, environment);
    this.#take(row).environment = environment;
    this.#queue.add(id);
  }

  /** It is wanted again: the next incarnation begins, on the claim that it has or on a new one. Null when it did already. */
  async #begin(row: SandboxRow, environment: SandboxRow['environment']): Promise<SandboxRow | null> {
    const { store } = this.#parts;
    if (row.claim !== null) return store.beginAgain(row);
    return store.beginClaim(row, {
      namespace: namespaceName(this.#options.settings.installation, row.workspace_id),
      claim: claimName(row.id, row.incarnation + 1),
      environment,
    });
  }

  #nextChange(id: string, timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const name = streamOf('sandbox', id);
      const done = (): void => {
        clearTimeout(timer);
        this.#signals.off(name, done);
        resolve();
      };
      const timer = setTimeout(done, Math.max(0, timeoutMs));
      this.#signals.on(name, done);
    });
  }

  #changed(id: string): void {
    const stream = streamOf('sandbox', id);
    this.#signals.emit(stream);
    this.#parts.bus.publishLive(committedSubject(stream), {});
  }

  // Who drives what.

  #take(row: SandboxRow): Driven {
    const driven: Driven = this.#driven.get(row.id) ?? {
      linked: null,
      sinceMs: Date.now(),
      readyAtMs: null,
      answering: null,
      environment: null,
      reason: null,
      measureAtMs: 0,
      done: new Map(),
    };
    this.#driven.set(row.id, driven);
    return driven;
  }

  #letGo(id: string): void {
    const driven = this.#driven.get(id);
    this.#driven.delete(id);
    driven?.linked?.close();
  }

  async #renew(): Promise<void> {
    if (this.#driven.size === 0) return;
    const ids = [...this.#driven.keys()];
    const askedMs = Date.now();
    const kept = await this.#parts.store.renew(ids);
    // One whose link has landed here since then is this replica's again.
    for (const id of ids) if (!kept.has(id) && (this.#driven.get(id)?.sinceMs ?? 0) < askedMs) this.#letGo(id);
  }

  /** Those that should run and that nobody drives. */
  async #adopt(): Promise<void> {
    const { store } = this.#parts;
    for (const { id } of await store.abandoned([...this.#driven.keys()], this.name)) {
      const row = await store.own(id);
      if (row === null) continue;
      this.#take(row);
      this.#queue.add(id);
    }
  }

  /** Still ours to end? After a stall it may be another replica's, or destroyed. */
  async #mine(id: string): Promise<boolean> {
    if ((await this.#parts.store.renew([id])).has(id)) return true;
    this.#letGo(id);
    return false;
  }

  // Bringing one on.

  async #reconcile(id: string): Promise<void> {
    const { store } = this.#parts;
    let row = (await store.byIds([id])).get(id) ?? null;
    const waiting = this.#driven.get(id);
    if (!this.#view.synced && waiting !== undefined && row !== null) {
      await this.#tell(row, waiting, UNREACHABLE);
      this.#queue.add(id, LOOK_MS);
      return;
    }
    for (let n = 0; n < MAX_STEPS && row !== null; n++) {
      const driven = this.#driven.get(id);
      if (row.status === 'destroyed') {
        await this.#objects.removeClaim(row);
        if (row.claim !== null) await store.forgetClaim(id);
        return;
      }
      if (driven === undefined) return;
      // Also when it was said to rest and the answer was lost: whoever wants it must find it free.
      if (row.status === 'suspended' || row.status === 'failed') return this.#rested(id);
      const seen = this.#view.observe(row);
      this.#follow(driven, seen);
      const step: Step = nextStep(
        {
          row,
          fresh: isFresh(row),
          linked: driven.linked?.linked === true,
          busy: driven.linked?.busy === true,
          sinceMs: driven.sinceMs,
          lastUsedMs: driven.linked?.lastUsedMs ?? driven.sinceMs,
          readyAtMs: driven.readyAtMs,
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
          await this.#askToBind(row, seen.podUid);
        if (step.reason !== null && (await this.#corrected(row, driven))) {
          row = await this.#anew(row);
          continue;
        }
        await this.#tell(row, driven, this.#view.healthy ? step.reason : UNREACHABLE);
        if (step.afterMs !== null) this.#queue.add(id, step.afterMs);
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
      idleMs: idle_seconds === null ? this.#options.idleMs : idle_seconds * 1_000,
      lifetimeMs: max_lifetime_seconds === null ? null : max_lifetime_seconds * 1_000,
      unwantedMs: UNWANTED_MS,
      linkMs: LINK_MS,
      nodeLostMs: this.#options.nodeLostMs,
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
          await this.#objects.claim(begun, new Date(Date.now() + this.#options.orphanMs));
        return null;
      }
      case 'resume':
        if (this.#once(driven, `resume ${row.incarnation}`, id)) {
          await this.#objects.refreshRunner(row);
          await this.#objects.setMode(row, 'Running');
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
        if (this.#links.of(seen.podUid) === null) await this.#askToBind(placed, seen.podUid);
        else await this.#bind(seen.podUid, id, placed);
        return (await store.byIds([id])).get(id) ?? null;
      }
      case 'bind':
        if (seen.podUid !== null) await this.#bind(seen.podUid, id);
        return (await store.byIds([id])).get(id) ?? null;
      case 'replace':
        if (seen.podUid === null || !(await this.#mine(id))) return null;
        if (this.#once(driven, `replace ${seen.podUid}`, id)) {
          logger.warn({ sandbox: id, pod: seen.pod, why: step.why }, 'a pod is replaced');
          await this.#objects.refreshRunner(row);
          await this.#objects.removePod(row, { uid: seen.podUid, graceSeconds: step.force ? 0 : HUNG_SECONDS });
        }
        return null;
      case 'lost': {
        // The caches may be behind; a claim that is gone is gone for everybody.
        if (seen.phase === 'absent' && (await this.#objects.hasClaim(row))) return this.#later(id);
        if (!(await this.#mine(id))) return null;
        driven.linked?.close();
        driven.linked = null;
        driven.sinceMs = Date.now();
        driven.readyAtMs = null;
        if (seen.phase === 'absent') {
          await store.mark(row, 'suspended', 'sandbox.lost', { incarnation: row.incarnation, reason: step.why });
          await store.forgetClaim(id);
          await this.#rested(id);
          return null;
        }
        await store.record(row, 'sandbox.lost', { incarnation: row.incarnation, reason: step.why });
        const again = await store.beginAgain(row);
        this.#changed(id);
        return again;
      }
      case 'rest':
        await this.#rest(row, driven, step.why);
        return null;
      case 'settle':
        if (!(await this.#mine(id))) return null;
        await store.mark(row, 'suspended', 'sandbox.suspended', { reason: 'it was suspended on the cluster' });
        await this.#rested(id);
        return null;
      case 'remove':
        return null;
    }
  }

  /** Whether the environment was changed while a claim that never came to run waits: it may have been what kept it waiting. */
  async #corrected(row: SandboxRow, driven: Driven): Promise<boolean> {
    if (row.status !== 'starting' || !isFresh(row)) return false;
    const now = await this.#environments.find(row.environment_id);
    if (now === null || now.retired || sameJson(sandboxOf(now.config), sandboxOf(row.environment))) return false;
    driven.environment = now.config;
    return true;
  }

  /** Another claim in place of one that nothing ran on. */
  async #anew(row: SandboxRow): Promise<SandboxRow | null> {
    const environment = this.#driven.get(row.id)?.environment ?? row.environment;
    const begun = await this.#begin({ ...row, claim: null }, environment);
    await this.#objects.removeClaim(row);
    return begun;
  }

  /** True when it was not done a moment ago; what was done cannot be seen at once. Looks again in a moment. */
  #once(driven: Driven, what: string, id: string): boolean {
    this.#queue.add(id, 1_000);
    const nowMs = Date.now();
    if ((driven.done.get(what) ?? 0) > nowMs) return false;
    driven.done.set(what, nowMs + SEEN_MS);
    return true;
  }
  #later(id: string): null {
    this.#queue.add(id, 500);
    return null;
  }

  /**
   * Suspends one that has a volume and gives the claim of another back. The row first: a runner that dials meanwhile is
   * not taken up again, and what is not done on the cluster when this process dies is done by housekeeping.
   */
  async #rest(row: SandboxRow, { linked }: Driven, why: string): Promise<void> {
    const { store, logger } = this.#parts;
    const usedMs = linked?.lastUsedMs;
    if (!(await this.#mine(row.id))) return;
    if (linked?.lastUsedMs !== usedMs || linked?.retire() === false) {
      this.#later(row.id);
      return;
    }
    const keeps = sandboxOf(row.environment).workspace === 'volume';
    try {
      await store.mark(row, 'suspended', 'sandbox.suspended', { reason: why });
    } catch (error) {
      this.#letGo(row.id);
      throw error;
    }
    if (!keeps) await store.forgetClaim(row.id);
    await this.#rested(row.id);
    try {
      if (keeps) await this.#objects.setMode(row, 'Suspended');
      else await this.#objects.removeClaim(row);
    } catch (error) {
      logger.warn({ err: error, sandbox: row.id }, 'a resting sandbox could not be ended yet');
    }
  }

  async #rested(id: string): Promise<void> {
    this.#letGo(id);
    await this.#parts.store.disown([id]);
    this.#changed(id);
  }

  /** Tells why it takes long, when it does: once per reason of an incarnation. */
  async #tell(row: SandboxRow, driven: Driven, reason: SandboxReason | null): Promise<void> {
    if (reason === null || reason.code === 'starting' || row.status !== 'starting') {
      driven.reason = null;
      return;
    }
    const nowMs = Date.now();
    if (driven.reason?.code !== reason.code) driven.reason = { code: reason.code, sinceMs: nowMs };
    if (row.reason?.code === reason.code) return;
    const leftMs = reason.code === 'pool-empty' ? 0 : driven.reason.sinceMs + PATIENT_MS - nowMs;
    if (leftMs > 0) {
      this.#queue.add(row.id, leftMs);
      return;
    }
    await this.#parts.store.wait(row, reason);
    this.#changed(row.id);
  }

  // Links.

  #onLost(podUid: string): void {
    for (const [id, driven] of this.#driven) {
      if (driven.linked?.row.pod_uid !== podUid) continue;
      // The next link may land on another replica: only whoever has it answers.
      driven.linked.close();
      driven.sinceMs = Date.now();
      this.#queue.add(id);
    }
  }

  /** Asks the replica that holds the pod's link to serve the sandbox; a runner that has not dialled yet asks itself. */
  async #askToBind(row: SandboxRow, podUid: string): Promise<void> {
    if (this.#links.of(podUid) !== null) {
      await this.#bind(podUid, row.id);
      return;
    }
    try {
      await this.#parts.bus.request(sandboxLinkSubject(podUid, 'bind'), { sandboxId: row.id } satisfies BindBody, {
        timeoutMs: BIND_MS,
      });
    } catch (error) {
      if (!isAppError(error) || error.kind !== 'unavailable') throw error;
    }
  }

  /** Asked from several sides at once it is done once for a link; a newer one is taken up by itself. */
  async #bind(podUid: string, sandboxId: string, placed: SandboxRow | null = null): Promise<EnsureSandboxReply> {
    const held = this.#links.of(podUid);
    if (held === null) throw new AppError('unavailable', 'sandbox.not-linked', 'The pod is not linked here.');
    const { link } = held;
    const binding =
      this.#binding.get(link) ?? this.#bindNow(held, sandboxId, placed).finally(() => this.#binding.delete(link));
    this.#binding.set(link, binding);
    return binding;
  }

  /**
   * Serves a sandbox over the link of its pod: pod → Sandbox → claim → session, as the cluster itself shows it. `placed` =
   * its row as this replica, which drives it, has just recorded it.
   */
  async #bindNow(held: HeldLink, sandboxId: string, placed: SandboxRow | null): Promise<EnsureSandboxReply> {
    const { store, bus, blobs, env, logger } = this.#parts;
    const podUid = held.pod.uid;
    const known = placed ?? (await store.byIds([sandboxId])).get(sandboxId);
    if (known === undefined || known.pod_uid !== podUid || known.namespace !== held.pod.namespace)
      throw new AppError('unavailable', 'sandbox.not-its-pod', 'The sandbox does not run in this pod.');
    if (!(await this.#view.until(() => this.#view.observe(known).podUid === podUid, BIND_MS)))
      throw new AppError('unavailable', 'sandbox.not-its-pod', 'The cluster does not show that the pod is claimed.');
    // It may have ended meanwhile, or another come in its place, which is served by its own.
    const mustStand = (): void => {
      if (this.#links.of(podUid)?.link !== held.link || !held.link.open)
        throw new AppError('unavailable', 'sandbox.not-linked', 'The pod is not linked here any more.');
    };
    mustStand();
    const row = placed ?? (await store.takeOver(sandboxId));
    if (row === null || row.pod_uid !== podUid)
      throw new AppError('unavailable', 'sandbox.gone', 'The sandbox is not wanted any more.');
    const driven = this.#take(row);
    mustStand();
    const { journalId } = held.link;
    const linked =
      driven.linked !== null && driven.linked.row.pod_uid === podUid
        ? driven.linked
        : new LinkedSandbox(row, {
            ...{ bus, blobs, env, logger, lack: () => Promise.resolve(null) },
            ending: () => this.#view.pod(podUid)?.metadata.deletionTimestamp !== undefined,
          });
    if (driven.linked !== linked) driven.linked?.close();
    driven.linked = linked;
    driven.sinceMs = Date.now();
    driven.readyAtMs ??= Date.now();
    linked.attach(held.link);
    if (row.status !== 'ready' || row.journal_id !== journalId) {
      const again = row.status === 'ready';
      if (again) {
        await store.record(row, 'sandbox.lost', {
          incarnation: row.incarnation,
          reason: this.#view.observe(row).reason?.message ?? 'its runner ended and was started again',
        });
      }
      const current = again ? await store.beginAgain(row) : row;
      if (current === null) throw new AppError('unavailable', 'sandbox.gone', 'The sandbox is not wanted any more.');
      if (!again) this.#signals.emit(streamOf('sandbox', sandboxId));
      await store.ready(
        { ...current, launch: row.launch, node: row.node },
        {
          journalId,
          publicKey: null,
          isolation: sandboxOf(row.environment).runtime_class ?? this.isolation,
          incarnation: current.incarnation,
        },
      );
      this.#changed(sandboxId);
    }
    this.#queue.add(sandboxId, CALM_MS);
    return { sandboxId, journalId };
  }

  // What goes on by itself.

  /** Stops what fills its bound. Not waited for: one that takes long to count holds up no other. */
  async #measure(): Promise<void> {
    for (const [id, driven] of this.#driven)
      if (driven.linked?.linked === true && Date.now() >= driven.measureAtMs)
        void this.#measureOne(id, driven, driven.linked);
  }

  async #measureOne(id: string, driven: Driven, linked: LinkedSandbox): Promise<void> {
    const beganMs = Date.now();
    driven.measureAtMs = Number.POSITIVE_INFINITY;
    const { workspace_mib } = sandboxOf(linked.row.environment);
    try {
      const bytes = await linked.link.measure();
      linked.boundedBy(workspace_mib === null ? this.#options.workspaceBytes : workspace_mib * 1024 ** 2, bytes);
    } catch (error) {
      this.#parts.logger.debug({ err: error, sandbox: id }, 'a sandbox could not be measured');
    }
    driven.measureAtMs = Date.now() + (Date.now() - beganMs) / MEASURE_SHARE;
  }

  /** Again and again, a while after it ended. What fails is tried again. */
  #repeat(everyMs: number, work: () => Promise<unknown>): void {
    const { signal } = this.#over;
    void (async () => {
      for (;;) {
        await sleep(everyMs, undefined, { signal }).catch(() => undefined);
        if (signal.aborted) return;
        await work().catch((error: unknown) =>
          this.#parts.logger.warn({ err: error }, 'sandboxes could not be looked after'),
        );
      }
    })();
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
