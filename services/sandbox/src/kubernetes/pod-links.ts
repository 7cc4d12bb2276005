import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Registration } from '@holdfast/bus';
import { type BindBody, type EnsureSandboxReply, HUB_AUDIENCE, sandboxLinkSubject } from '@holdfast/contracts';
import { ModelDoor } from '../door/model-door.ts';
import { EgressProxy } from '../egress/egress-proxy.ts';
import type { HostParts } from '../host/sandbox-host.port.ts';
import { ClusterDoor, type ClusterDoorOptions, type LinkRefusal, type PodIdentity } from '../hub/cluster-door.ts';
import type { RunnerLink } from '../hub/runner-link.ts';
import type { ClusterStore } from './cluster.store.ts';
import type { Cluster } from './cluster.ts';
import type { ClusterView } from './cluster-view.ts';
import { SERVICE_ACCOUNT } from './names.ts';

/** A second key may be of a container that was restarted; the kubelet has told the API server by then. */
const RESTART_SEEN_MS = 4_000;

export interface PodLinksParts extends Pick<HostParts, 'bus' | 'store' | 'logger' | 'connections'> {
  readonly cluster: Cluster;
  readonly view: ClusterView;
  readonly rows: ClusterStore;
  readonly door: Pick<ClusterDoorOptions, 'host' | 'port' | 'tls'>;
  /** The pod of this sandbox has linked here: serve it. */
  readonly bind: (podUid: string, sandboxId: string) => Promise<EnsureSandboxReply>;
  /** The link of a pod has ended. */
  readonly onLost: (podUid: string, link: RunnerLink) => void;
}

/** A pod's proven link, claimed or not. */
export interface HeldLink {
  readonly pod: PodIdentity;
  readonly link: RunnerLink;
}

/**
 * The links that pods have dialled to this replica, from before they are claimed. Who a pod is says the API server: its
 * token is reviewed once and bound to the runner's key (X5); whose sandbox runs in it says the row that was placed there.
 */
export class PodLinks {
  readonly #parts: PodLinksParts;
  readonly #door: ClusterDoor;
  readonly #links = new Map<string, HeldLink & { readonly registration: Registration }>();
  readonly #proxies = new Map<string, EgressProxy>();
  readonly #doors = new Map<string, ModelDoor>();
  /** How many were refused since the start. */
  refused = 0;

  constructor(parts: PodLinksParts) {
    this.#parts = parts;
    const tried =
      <A extends [PodIdentity | null, ...unknown[]]>(work: (...args: A) => Promise<void>) =>
      (...args: A): void => {
        work(...args).catch((error: unknown) =>
          parts.logger.warn({ err: error, pod: args[0]?.name }, 'a link could not be served'),
        );
      };
    const onRefused = tried((_pod: null, refusal: LinkRefusal) => this.#onRefused(refusal));
    this.#door = new ClusterDoor({
      ...parts.door,
      // What cannot be asked is asked again by the runner's next dial.
      review: (token) => this.#asked('review', this.#review(token)),
      keys: {
        find: (podUid) => this.#asked('find', parts.rows.keyOf(podUid)),
        bind: (pod, publicKey) => this.#asked('bind', this.#bindKey(pod, publicKey)),
      },
      onLink: tried((pod: PodIdentity, link: RunnerLink) => this.#onLink(pod, link)),
      onEgress: tried((pod: PodIdentity, stream: Duplex, channel: 'egress' | 'door') =>
        this.#onEgress(pod, stream, channel),
      ),
      onRefused: (refusal) => onRefused(null, refusal),
    });
    parts.view.onPodGone((uid) => {
      this.#links.get(uid)?.link.close();
      for (const served of [this.#proxies, this.#doors]) {
        void served.get(uid)?.close();
        served.delete(uid);
      }
    });
  }

  listen(): Promise<void> {
    return this.#door.listen();
  }

  async close(): Promise<void> {
    for (const { registration, link } of this.#links.values()) {
      void registration.stop();
      link.close();
    }
    this.#links.clear();
    await this.#door.close();
    await Promise.all([...this.#proxies.values(), ...this.#doors.values()].map((served) => served.close()));
  }

  get size(): number {
    return this.#links.size;
  }
  of(podUid: string): HeldLink | null {
    return this.#links.get(podUid) ?? null;
  }

  async #onLink(pod: PodIdentity, link: RunnerLink): Promise<void> {
    const { bus, store, bind, view, logger } = this.#parts;
    // One that was removed by force may run on where its node is cut off. One that is not seen yet dials again.
    if (view.synced && view.healthy && view.pod(pod.uid) === null) {
      link.close();
      return;
    }
    const before = this.#links.get(pod.uid);
    const registration =
      before?.registration ??
      bus.reply<BindBody, EnsureSandboxReply>(sandboxLinkSubject(pod.uid, 'bind'), {}, ({ sandboxId }) =>
        bind(pod.uid, sandboxId),
      );
    this.#links.set(pod.uid, { pod, link, registration });
    link.handlers.onLost = () => this.#onLost(pod.uid, link);
    // Whoever records the pod after this finds the subject; who recorded it before is found here.
    // Without the bus nobody finds it now; whoever drives the sandbox asks again.
    await bus.flush().catch((error: unknown) => logger.debug({ err: error }, 'the bus was away when a runner linked'));
    const row = await store.ofPod(pod.uid);
    if (row !== null && link.open) await bind(pod.uid, row.id);
  }

  #onLost(podUid: string, link: RunnerLink): void {
    const held = this.#links.get(podUid);
    if (held?.link !== link) return;
    this.#links.delete(podUid);
    void held.registration.stop();
    this.#parts.onLost(podUid, link);
  }

  async #asked<T>(what: string, question: Promise<T>): Promise<T> {
    try {
      return await question;
    } catch (error) {
      this.#parts.logger.warn({ err: error, what }, 'a runner that dials could not be looked at');
      throw error;
    }
  }

  async #review(token: string): Promise<PodIdentity | { refused: string }> {
    const { cluster, view } = this.#parts;
    const found = await cluster.reviewToken(token, HUB_AUDIENCE);
    if ('refused' in found) return found;
    const { namespace, serviceAccount, pod: name, podUid: uid } = found;
    if (serviceAccount !== SERVICE_ACCOUNT || !view.isOurs(namespace))
      return { refused: 'the token is of another namespace or account' };
    return { uid, name, namespace, node: null };
  }

  async #bindKey(pod: PodIdentity, publicKey: string): Promise<boolean> {
    const { rows, view } = this.#parts;
    const workspaceId = view.workspaceOf(pod.namespace) ?? '';
    const restarts = (): number => view.restartsOf(pod.uid);
    const bind = (): Promise<boolean> => rows.bindKey(pod, workspaceId, publicKey, restarts());
    if (await bind()) return true;
    const bound = await rows.keyOf(pod.uid);
    for (const deadline = Date.now() + RESTART_SEEN_MS; Date.now() < deadline; await sleep(50))
      if (restarts() > (bound?.restarts ?? 0)) return bind();
    return false;
  }

  async #onEgress(pod: PodIdentity, stream: Duplex, channel: 'egress' | 'door'): Promise<void> {
    const { store, logger } = this.#parts;
    const row = await store.ofPod(pod.uid);
    if (row === null) {
      stream.destroy();
      return;
    }
    if (channel === 'door') {
      const door = this.#doors.get(pod.uid) ?? new ModelDoor(row.session_id, this.#parts);
      this.#doors.set(pod.uid, door);
      door.accept(stream);
      return;
    }
    const proxy =
      this.#proxies.get(pod.uid) ??
      new EgressProxy(row.environment.networking, (decision) => {
        store
          .record(row, 'sandbox.egress_decided', { ...decision })
          .catch((error: unknown) => logger.warn({ err: error, sandbox: row.id }, 'a decision could not be recorded'));
      });
    this.#proxies.set(pod.uid, proxy);
    proxy.accept(stream);
  }

  /** Is told of on the stream of the sandbox that it came from, when that is known: what it proved, or its address. */
  async #onRefused(refusal: LinkRefusal): Promise<void> {
    const { store, logger, view } = this.#parts;
    this.refused += 1;
    const uid = refusal.pod ?? view.podAt(refusal.remoteAddress);
    logger.warn({ ...refusal, pod: uid }, 'a link was refused');
    const row = uid === null ? null : await store.ofPod(uid);
    if (row !== null) await store.record(row, 'sandbox.link_refused', { reason: refusal.reason });
  }
}
