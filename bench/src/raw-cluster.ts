import { performance } from 'node:perf_hooks';
import { KubeConfig } from '@kubernetes/client-node';
import { Agent, type Dispatcher, request } from 'undici';

const VERSION = 'v1beta1';
const EXTENSIONS = `/apis/extensions.agents.x-k8s.io/${VERSION}`;
const FOLLOWED = {
  claims: { root: EXTENSIONS, plural: 'sandboxclaims' },
  pools: { root: EXTENSIONS, plural: 'sandboxwarmpools' },
  sandboxes: { root: `/apis/agents.x-k8s.io/${VERSION}`, plural: 'sandboxes' },
  pods: { root: '/api/v1', plural: 'pods' },
} as const;
type Kind = keyof typeof FOLLOWED;

/** An object of the cluster, as far as the benches look at it. */
export interface Seen {
  readonly metadata: {
    readonly name: string;
    readonly uid: string;
    readonly labels?: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
    readonly deletionTimestamp?: string;
    readonly ownerReferences?: readonly { readonly kind: string; readonly uid: string }[];
  };
  readonly spec?: { readonly replicas?: number };
  readonly status?: {
    readonly readyReplicas?: number;
    readonly sandbox?: { readonly name?: string };
    readonly conditions?: readonly { readonly type: string; readonly status: string; readonly reason?: string }[];
  };
}

interface Looker {
  readonly look: (at: number) => void;
  readonly fail: (error: Error) => void;
}

/**
 * One namespace of a cluster, asked and watched without Holdfast: the baseline. Its requests go over kept connections and
 * its watches stand before anything is measured, so that what it measures is the cluster alone.
 */
export class RawNamespace {
  readonly #server: string;
  readonly #dispatcher: Agent;
  readonly #namespace: string;
  readonly #objects: Readonly<Record<Kind, Map<string, Seen>>> = {
    claims: new Map(),
    pools: new Map(),
    sandboxes: new Map(),
    pods: new Map(),
  };
  readonly #lookers = new Set<Looker>();
  readonly #over = new AbortController();
  #broken: Error | null = null;

  private constructor(config: { server: string; ca?: string; cert?: string; key?: string }, namespace: string) {
    const { server, ...connect } = config;
    this.#server = server;
    this.#namespace = namespace;
    this.#dispatcher = new Agent({ connect, bodyTimeout: 0, connections: 64, pipelining: 1 });
  }

  /** Follows a namespace with the client certificate of a kubeconfig. */
  static async open(kubeconfig: string, namespace: string): Promise<RawNamespace> {
    const config = new KubeConfig();
    config.loadFromFile(kubeconfig);
    const tls: { ca?: string; cert?: string; key?: string } = {};
    await config.applyToHTTPSOptions(tls);
    const server = config.getCurrentCluster()?.server;
    if (server === undefined || tls.cert === undefined)
      throw new Error(`${kubeconfig} names no cluster, or has no client certificate for it`);
    const { ca, cert, key } = tls;
    const raw = new RawNamespace(
      { server, cert, ...(ca === undefined ? {} : { ca }), ...(key === undefined ? {} : { key }) },
      namespace,
    );
    try {
      await Promise.all((Object.keys(FOLLOWED) as Kind[]).map((kind) => raw.#follow(kind)));
    } catch (error) {
      await raw.close();
      throw error;
    }
    return raw;
  }

  async close(): Promise<void> {
    this.#over.abort();
    await this.#dispatcher.destroy();
  }

  all(kind: Kind): Seen[] {
    return [...this.#objects[kind].values()];
  }
  get(kind: Kind, name: string): Seen | undefined {
    return this.#objects[kind].get(name);
  }

  /** When (`performance.now()`) the watches first showed what `found` looks for; at once when they show it already. */
  async when<T>(what: string, found: () => T | undefined, timeoutMs = 60_000): Promise<{ at: number; found: T }> {
    if (this.#broken !== null) throw this.#broken;
    let looker: Looker | undefined;
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise((resolve, fail) => {
        const look = (at: number): void => {
          const value = found();
          if (value !== undefined) resolve({ at, found: value });
        };
        looker = { look, fail };
        this.#lookers.add(looker);
        timer = setTimeout(() => fail(new Error(`${what}: not within ${timeoutMs / 1_000} s`)), timeoutMs);
        look(performance.now());
      });
    } finally {
      clearTimeout(timer);
      if (looker !== undefined) this.#lookers.delete(looker);
    }
  }

  /**
   * A claim made and followed by hand: when it was sent, and when the watch showed it ready. It ends by itself in ten
   * minutes, should nobody remove it.
   */
  async claim(name: string, pool: string): Promise<{ sentAt: number; readyAt: number; sandbox: string }> {
    const ready = this.when(`claim ${name} ready`, () => {
      const claim = this.get('claims', name);
      return conditionOf(claim, 'Ready')?.status === 'True' ? claim?.status?.sandbox?.name : undefined;
    });
    ready.catch(() => undefined);
    const sentAt = performance.now();
    await this.#send('POST', pathOf('claims', this.#namespace), {
      apiVersion: `extensions.agents.x-k8s.io/${VERSION}`,
      kind: 'SandboxClaim',
      metadata: { name, namespace: this.#namespace },
      spec: {
        warmPoolRef: { name: pool },
        lifecycle: {
          shutdownTime: `${new Date(Date.now() + 600_000).toISOString().slice(0, 19)}Z`,
          shutdownPolicy: 'Delete',
        },
      },
    });
    const { at, found } = await ready;
    return { sentAt, readyAt: at, sandbox: found };
  }

  async removeClaim(name: string): Promise<void> {
    await this.#send('DELETE', `${pathOf('claims', this.#namespace)}/${name}`);
  }

  async setMode(sandbox: string, operatingMode: 'Running' | 'Suspended'): Promise<void> {
    await this.#send('PATCH', `${pathOf('sandboxes', this.#namespace)}/${sandbox}`, { spec: { operatingMode } });
  }

  async #send(method: 'POST' | 'PATCH' | 'DELETE', path: string, body?: object): Promise<void> {
    const answer = await this.#request(method, path, body);
    await answer.body.dump();
  }

  async #request(method: Dispatcher.HttpMethod, path: string, body?: object): Promise<Dispatcher.ResponseData> {
    const answer = await request(this.#server + path, {
      method,
      dispatcher: this.#dispatcher,
      signal: this.#over.signal,
      headers: { 'content-type': method === 'PATCH' ? 'application/merge-patch+json' : 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    if (answer.statusCode >= 300)
      throw new Error(`${method} ${path}: ${answer.statusCode} ${(await answer.body.text()).slice(0, 500)}`);
    return answer;
  }

  async #follow(kind: Kind): Promise<void> {
    const path = pathOf(kind, this.#namespace);
    const list = (await (await this.#request('GET', path)).body.json()) as {
      items: Seen[];
      metadata: { resourceVersion: string };
    };
    for (const object of list.items) this.#objects[kind].set(object.metadata.name, object);
    const { resourceVersion } = list.metadata;
    const query = new URLSearchParams({ watch: 'true', timeoutSeconds: '3600', resourceVersion });
    const { body } = await this.#request('GET', `${path}?${query.toString()}`);
    let rest = '';
    body.setEncoding('utf8');
    body.on('data', (text: string) => {
      const at = performance.now();
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) this.#take(kind, JSON.parse(line) as { type: string; object: Seen });
      for (const { look } of [...this.#lookers]) look(at);
    });
    const over = (error?: Error): void => {
      this.#broken ??= new Error(`the watch of ${kind} ended${error === undefined ? '' : `: ${error.message}`}`);
      for (const { fail } of [...this.#lookers]) fail(this.#broken);
    };
    body.on('error', over);
    body.on('end', over);
  }

  #take(kind: Kind, { type, object }: { type: string; object: Seen }): void {
    if (type === 'DELETED') this.#objects[kind].delete(object.metadata.name);
    else if (type === 'ADDED' || type === 'MODIFIED') this.#objects[kind].set(object.metadata.name, object);
    else throw new Error(`the watch of ${kind} told ${type}: ${JSON.stringify(object)}`);
  }
}

const pathOf = (kind: Kind, namespace: string): string =>
  `${FOLLOWED[kind].root}/namespaces/${namespace}/${FOLLOWED[kind].plural}`;

export function conditionOf(
  object: Seen | undefined,
  type: string,
): { readonly status: string; readonly reason?: string } | undefined {
  return object?.status?.conditions?.find((condition) => condition.type === type);
}
