import {
  AppError,
  type BindBody,
  type EnsureSandboxReply,
  isAppError,
  sandboxLinkSubject,
  sandboxOf,
} from '@holdfast/contracts';
import { LinkedSandbox } from '../host/linked-sandbox.ts';
import type { HostParts } from '../host/sandbox-host.port.ts';
import type { RunnerLink } from '../hub/runner-link.ts';
import type { SandboxRow } from '../store/sandbox.store.ts';
import type { ClusterView } from './cluster-view.ts';
import type { DrivenSandboxes } from './driven-sandboxes.ts';
import { type HeldLink, PodLinks, type PodLinksParts } from './pod-links.ts';
import type { SandboxChanges } from './sandbox-changes.ts';

const BIND_MS = 5_000;
/** What changes of a sandbox that serves calls is not urgent, and comes in rows: should it end, its link tells first. */
export const CALM_MS = 250;
/** How processes are isolated where an environment names no runtime class. */
export const ISOLATION = 'container';

export interface SandboxBinderParts
  extends Pick<HostParts, 'store' | 'keeper' | 'bus' | 'blobs' | 'fileBlobs' | 'env' | 'logger' | 'connections'>,
    Pick<PodLinksParts, 'cluster' | 'rows' | 'door'> {
  readonly view: ClusterView;
  readonly driven: DrivenSandboxes;
  readonly changes: SandboxChanges;
  /** Something about it may have changed. */
  readonly lookAt: (id: string, afterMs?: number) => void;
}

/**
 * Brings runners' links and sandboxes together. A link lands on any replica: that one takes the sandbox's lease from whoever
 * had it, and serves the calls.
 */
export class SandboxBinder {
  readonly links: PodLinks;
  readonly #parts: SandboxBinderParts;
  readonly #binding = new Map<RunnerLink, Promise<EnsureSandboxReply>>();

  constructor(parts: SandboxBinderParts) {
    this.#parts = parts;
    this.links = new PodLinks({
      ...parts,
      bind: (podUid, sandboxId) => this.bind(podUid, sandboxId),
      onLost: (podUid, link) => this.#onLost(podUid, link),
    });
  }

  /** Asks the replica that holds the pod's link to serve the sandbox; a runner that has not dialled yet asks itself. */
  async ask(row: SandboxRow, podUid: string): Promise<void> {
    if (this.links.of(podUid) !== null) {
      await this.bind(podUid, row.id);
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
  async bind(podUid: string, sandboxId: string, placed: SandboxRow | null = null): Promise<EnsureSandboxReply> {
    const held = this.links.of(podUid);
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
    const { store, view, changes, lookAt } = this.#parts;
    const podUid = held.pod.uid;
    const known = placed ?? (await store.byIds([sandboxId])).get(sandboxId);
    if (known === undefined || known.pod_uid !== podUid || known.namespace !== held.pod.namespace)
      throw new AppError('unavailable', 'sandbox.not-its-pod', 'The sandbox does not run in this pod.');
    if (!(await view.until(() => view.observe(known).podUid === podUid, BIND_MS)))
      throw new AppError('unavailable', 'sandbox.not-its-pod', 'The cluster does not show that the pod is claimed.');
    // It may have ended meanwhile, or another come in its place, which is served by its own.
    const mustStand = (): void => {
      if (this.links.of(podUid)?.link !== held.link || !held.link.open)
        throw new AppError('unavailable', 'sandbox.not-linked', 'The pod is not linked here any more.');
    };
    mustStand();
    const row = placed ?? (await store.takeOver(sandboxId));
    if (row === null || row.pod_uid !== podUid)
      throw new AppError('unavailable', 'sandbox.gone', 'The sandbox is not wanted any more.');
    const driven = this.#parts.driven.take(row);
    mustStand();
    const { journalId } = held.link;
    const linked =
      driven.linked !== null && driven.linked.row.pod_uid === podUid
        ? driven.linked
        : new LinkedSandbox(row, {
            ...this.#parts,
            lack: () => Promise.resolve(null),
            ending: () => view.pod(podUid)?.metadata.deletionTimestamp !== undefined,
          });
    if (driven.linked !== linked) driven.linked?.close();
    driven.linked = linked;
    driven.sinceMs = Date.now();
    driven.silent = false;
    linked.attach(held.link);
    if (row.status !== 'ready' || row.journal_id !== journalId) {
      const again = row.status === 'ready';
      if (again) {
        await store.record(row, 'sandbox.lost', {
          incarnation: row.incarnation,
          reason: view.observe(row).reason?.message ?? 'its runner ended and was started again',
        });
      }
      const current = again ? await store.beginAgain(row) : row;
      if (current === null) throw new AppError('unavailable', 'sandbox.gone', 'The sandbox is not wanted any more.');
      if (!again) changes.tellHere(sandboxId);
      await store.ready(
        { ...current, launch: row.launch, node: row.node },
        {
          journalId,
          publicKey: null,
          isolation: sandboxOf(row.environment).runtime_class ?? ISOLATION,
          incarnation: current.incarnation,
        },
      );
      changes.tell(sandboxId);
    } else if (row.reason !== null) {
      await store.answers(sandboxId);
    }
    lookAt(sandboxId, CALM_MS);
    return { sandboxId, journalId };
  }

  #onLost(podUid: string, { silent }: RunnerLink): void {
    for (const [id, driven] of this.#parts.driven) {
      if (driven.linked?.row.pod_uid !== podUid) continue;
      // The next link may land on another replica: only whoever has it answers.
      driven.linked.close();
      driven.sinceMs = Date.now();
      driven.silent = silent;
      this.#parts.lookAt(id);
    }
  }
}
