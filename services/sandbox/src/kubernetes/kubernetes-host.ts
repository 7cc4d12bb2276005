import { setTimeout as sleep } from 'node:timers/promises';
import {
  AppError,
  type ClaimBody,
  type EnsureSandboxBody,
  type EnsureSandboxReply,
  isAppError,
  type SandboxReason,
  type ServiceBeat,
  sandboxLinkSubject,
  sandboxOf,
} from '@holdfast/contracts';
import type { LinkedSandbox } from '../host/linked-sandbox.ts';
import type { HostParts, SandboxHost } from '../host/sandbox-host.port.ts';
import type { ClusterDoorOptions } from '../hub/cluster-door.ts';
import { EnvironmentStore } from '../store/environment.store.ts';
import type { SandboxRow } from '../store/sandbox.store.ts';
import { ClusterStore } from './cluster.store.ts';
import type { Cluster } from './cluster.ts';
import { ClusterView } from './cluster-view.ts';
import { type Driven, DrivenSandboxes } from './driven-sandboxes.ts';
import { Housekeeping } from './housekeeping.ts';
import { claimName, namespaceName } from './names.ts';
import { Objects } from './objects.ts';
import { ISOLATION, SandboxBinder } from './sandbox.binder.ts';
import { SandboxReconciler } from './sandbox.reconciler.ts';
import { SandboxChanges } from './sandbox-changes.ts';
import type { ClusterSettings } from './settings.manifest.ts';

const RENEW_MS = 2_000;
const ADOPT_MS = 3_000;
const TIDY_MS = 5_000;
const MEASURE_MS = 2_000;
/** Measuring takes at most this share of the time. */
const MEASURE_SHARE = 1 / 20;
const CLAIM_MS = 3_000;
/** Whoever waits says so again and again. */
const TOUCH_MS = 5_000;
/** Between two looks at a sandbox that somebody waits for; it is woken before that when something changes. */
const LOOK_MS = 1_000;

export interface KubernetesOptions {
  readonly settings: ClusterSettings;
  readonly door: Pick<ClusterDoorOptions, 'host' | 'port' | 'tls'>;
  readonly idleMs: number;
  readonly nodeLostMs: number;
  /** A claim that is not renewed for so long is removed by the cluster. */
  readonly orphanMs: number;
  readonly workspaceBytes: number;
}

/**
 * Sandboxes as agent-sandbox resources. The reconciler makes what the rows say of what the cluster has, the binder gives a
 * runner's link to the sandbox that runs in its pod, and here is who asks for it and what goes on by itself.
 */
export class KubernetesHost implements SandboxHost {
  readonly name = 'kubernetes';
  readonly isolation = ISOLATION;
  readonly #parts: HostParts;
  readonly #options: KubernetesOptions;
  readonly #cluster: Cluster;
  readonly #view: ClusterView;
  readonly #driven: DrivenSandboxes;
  readonly #changes: SandboxChanges;
  readonly #binder: SandboxBinder;
  readonly #reconciler: SandboxReconciler;
  readonly #housekeeping: Housekeeping;
  readonly #over = new AbortController();

  private constructor(parts: HostParts, options: KubernetesOptions, cluster: Cluster) {
    const { settings, door } = options;
    const { store, pool, bus } = parts;
    this.#parts = parts;
    this.#options = options;
    this.#cluster = cluster;
    this.#view = new ClusterView(cluster, settings.installation);
    this.#driven = new DrivenSandboxes(store);
    this.#changes = new SandboxChanges(bus);
    const shared = { ...parts, view: this.#view, driven: this.#driven, changes: this.#changes };
    const objects = new Objects(cluster, this.#view, settings);
    const rows = new ClusterStore(pool);
    const environments = new EnvironmentStore(pool);
    this.#binder = new SandboxBinder({
      ...{ ...shared, cluster, rows, door },
      lookAt: (id, afterMs) => this.#reconciler.lookAt(id, afterMs),
    });
    this.#reconciler = new SandboxReconciler({
      ...{ ...shared, ...options, objects, environments },
      binder: this.#binder,
      installation: settings.installation,
    });
    this.#housekeeping = new Housekeeping({ ...shared, ...options, objects, rows, environments });
  }

  static async start(parts: HostParts, cluster: Cluster, options: KubernetesOptions): Promise<KubernetesHost> {
    const host = new KubernetesHost(parts, options, cluster);
    await host.#binder.links.listen();
    host.#repeat(RENEW_MS, () => host.#driven.renew());
    host.#repeat(ADOPT_MS, () => host.#adopt());
    host.#repeat(TIDY_MS, () => host.#housekeeping.run());
    host.#repeat(MEASURE_MS, () => host.#measure());
    return host;
  }

  figures(): ServiceBeat['figures'] {
    const { linked, size } = this.#driven;
    return {
      served: size,
      linked,
      warm: this.#binder.links.size - linked,
      refused_links: this.#binder.links.refused,
      isolation: this.isolation,
      cluster: this.#view.healthy,
    };
  }

  async close(): Promise<void> {
    this.#over.abort();
    this.#changes.close();
    await this.#reconciler.close();
    const ids = this.#driven.letGoOfAll();
    await this.#binder.links.close();
    await this.#view.stop();
    this.#cluster.close();
    await this.#parts.store.disown(ids).catch(() => undefined);
  }

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
    if (made) this.#driven.take(row);
    let touchAtMs = made ? Date.now() + TOUCH_MS : 0;
    // Its record as ready is not waited for: what was run says the runner's journal, whatever becomes of the record.
    const linked = (): boolean => row.status === 'starting' && this.#driven.of(row.id)?.linked?.linked === true;
    for (;;) {
      if (row.status === 'ready' || linked()) {
        const reply = await this.#claim(row.id, body.generation);
        if (reply !== null) return reply;
      }
      if (Date.now() >= touchAtMs) {
        await store.touch(row.id);
        touchAtMs = Date.now() + TOUCH_MS;
      }
      const changed = this.#changes.next(row.id, Math.min(LOOK_MS, deadlineAtMs - Date.now()));
      await this.#reconciler.drive(row.id, body.environment);
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
    this.#driven.letGo(row.id);
    // When the API server cannot be reached now, or this process dies: housekeeping removes what no row needs.
    this.#reconciler.lookAt(row.id);
  }

  /** Asks whoever holds the link; null when nobody does right now. */
  async #claim(id: string, generation: number): Promise<EnsureSandboxReply | null> {
    try {
      const mine = this.#driven.of(id)?.linked;
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

  /** Those that should run and that nobody drives. */
  async #adopt(): Promise<void> {
    for (const id of await this.#driven.adopt(this.name)) this.#reconciler.lookAt(id);
  }

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
