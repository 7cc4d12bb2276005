import { existsSync } from 'node:fs';
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest, type RequestOptions } from 'node:https';
import { AppError, isAppError } from '@holdfast/contracts';
import type { Logger } from '@holdfast/platform';
import { KubeConfig } from '@kubernetes/client-node';
import { requestError, type Status, unreachable } from './cluster-error.ts';
import { type KindName, type Kinds, type KubernetesObject, RESOURCES, type Stored } from './kinds.ts';
import { Watched, type WatchedOptions, type WatchFrame, type WatchSource } from './watched.ts';

export interface ClusterOptions {
  /** Path of a kubeconfig; null = the service account of the pod that this runs in. */
  readonly kubeconfig: string | null;
  /** @default holdfast */
  readonly fieldManager?: string;
  readonly logger: Logger;
}

/** Which object, by name. */
export interface Ref<K extends KindName = KindName> {
  readonly kind: K;
  readonly metadata: { readonly name: string; readonly namespace?: string };
}

export interface Selection {
  /** Absent = all. */
  readonly namespace?: string;
  readonly labelSelector?: string;
  readonly fieldSelector?: string;
}

/** Who dials with a token, as the API server says. */
export interface PodIdentity {
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly pod: string;
  readonly podUid: string;
}

/** A request that is not answered within this time failed. */
const REQUEST_MS = 10_000;
/** The server ends a watch after so long, or a third longer, and tells the newest version before. */
const WATCH_SECONDS = 30;
/** So one that is silent for so long is dead. */
const WATCH_SILENCE_MS = 50_000;
const KEEP_ALIVE_MS = 15_000;
const PAGE = 500;
/** Each is a connection of its own, so none waits for another; beyond this they queue. */
const MAX_CONNECTIONS = 64;
const POD_TOKEN = '/var/run/secrets/kubernetes.io/serviceaccount/token';

/**
 * The API server of one cluster. Every failure is an AppError with a code of {@link requestError}; nothing is tried again
 * but a request that met a connection which the server had closed. Objects come as JSON has them, without what only
 * Kubernetes reads.
 */
export class Cluster {
  readonly #config: KubeConfig;
  readonly #base: URL;
  readonly #fieldManager: string;
  readonly #logger: Logger;
  readonly #requests: HttpAgent;
  readonly #watches: HttpAgent;

  private constructor(config: KubeConfig, server: string, fieldManager: string, logger: Logger) {
    this.#config = config;
    this.#base = new URL(server);
    this.#fieldManager = fieldManager;
    this.#logger = logger;
    const agents = this.#base.protocol === 'https:' ? HttpsAgent : HttpAgent;
    this.#requests = new agents({ keepAlive: true, maxSockets: MAX_CONNECTIONS, scheduling: 'lifo' });
    this.#watches = new agents({ keepAlive: false });
  }

  /** Reads the configuration and asks nothing yet. @throws AppError `cluster.not-configured` */
  static connect(options: ClusterOptions): Cluster {
    const config = new KubeConfig();
    try {
      if (options.kubeconfig !== null) config.loadFromFile(options.kubeconfig);
      else if (existsSync(POD_TOKEN)) config.loadFromCluster();
      else throw new Error('this is no pod, and there is no kubeconfig');
      const server = config.getCurrentCluster()?.server;
      if (server === undefined) throw new Error('its current context names no cluster');
      return new Cluster(config, server, options.fieldManager ?? 'holdfast', options.logger);
    } catch (error) {
      throw new AppError(
        'invalid',
        'cluster.not-configured',
        `No cluster to talk to (${options.kubeconfig ?? 'in a pod'}): ${error instanceof Error ? error.message : String(error)}`,
        { cause: error },
      );
    }
  }

  /**
   * Makes the object, or makes of it what is given; what others have set stays (server-side apply, fields that others
   * contend for are taken). With `metadata.uid` it is never made, only changed: another or none is a `cluster.conflict`.
   */
  async apply<T extends KubernetesObject>(object: T): Promise<Stored<T>> {
    return (await this.#request('PATCH', pathOf(object), {
      query: { fieldManager: this.#fieldManager, force: 'true', fieldValidation: 'Strict' },
      contentType: 'application/apply-patch+yaml',
      body: object,
    })) as Stored<T>;
  }

  /** Makes the object unless one of that name is there, which is left as it is; returns whether it was made. */
  async create(object: KubernetesObject): Promise<boolean> {
    try {
      await this.#request('POST', collectionOf(object.kind, object.metadata.namespace), {
        query: { fieldManager: this.#fieldManager, fieldValidation: 'Strict' },
        body: object,
      });
      return true;
    } catch (error) {
      if (isAppError(error) && error.details['reason'] === 'AlreadyExists') return false;
      throw error;
    }
  }

  /** Null when it is not there. */
  async get<K extends KindName>(kind: K, name: string, namespace?: string): Promise<Stored<Kinds[K]> | null> {
    const path = pathOf({ kind, metadata: { name, ...(namespace === undefined ? {} : { namespace }) } });
    return (await absentAs(null, this.#request('GET', path))) as Stored<Kinds[K]> | null;
  }

  async list<K extends KindName>(kind: K, selection: Selection = {}): Promise<readonly Stored<Kinds[K]>[]> {
    return (await this.#list(kind, selection)).items;
  }

  /** Changes what is given (JSON merge patch). With `metadata.uid` in it another object is a `cluster.conflict`. */
  async patch<K extends KindName>(ref: Ref<K>, change: object): Promise<Stored<Kinds[K]>> {
    return (await this.#request('PATCH', pathOf(ref), {
      query: { fieldManager: this.#fieldManager, fieldValidation: 'Strict' },
      contentType: 'application/merge-patch+json',
      body: change,
    })) as Stored<Kinds[K]>;
  }

  /**
   * Deletes it, and in the background what it owns. Returns false when it is not there, or no longer the one with `uid`.
   * `graceSeconds` 0 takes a pod off the API without waiting for its node.
   */
  async remove(ref: Ref, options: { readonly uid?: string; readonly graceSeconds?: number } = {}): Promise<boolean> {
    const { uid, graceSeconds } = options;
    const request = this.#request('DELETE', pathOf(ref), {
      body: {
        apiVersion: 'v1',
        kind: 'DeleteOptions',
        propagationPolicy: 'Background',
        ...(uid === undefined ? {} : { preconditions: { uid } }),
        ...(graceSeconds === undefined ? {} : { gracePeriodSeconds: graceSeconds }),
      },
    });
    try {
      return (await absentAs(null, request)) !== null;
    } catch (error) {
      if (uid !== undefined && isAppError(error) && error.code === 'cluster.conflict' && error.message.includes(uid)) {
        return false;
      }
      throw error;
    }
  }

  /** Whose pod a service account's token is, if it was made for `audience` and holds; else why it is refused. */
  async reviewToken(token: string, audience: string): Promise<PodIdentity | { readonly refused: string }> {
    const { status = {} } = (await this.#request('POST', '/apis/authentication.k8s.io/v1/tokenreviews', {
      body: { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview', spec: { token, audiences: [audience] } },
    })) as { readonly status?: TokenStatus };
    if (status.authenticated !== true) return { refused: status.error ?? 'the token is not valid' };
    // An API server that does not know audiences answers without them.
    if (status.audiences?.includes(audience) !== true) return { refused: `the token is not for ${audience}` };
    const [, namespace, serviceAccount] =
      /^system:serviceaccount:([^:]+):([^:]+)$/.exec(status.user?.username ?? '') ?? [];
    const pod = status.user?.extra?.['authentication.kubernetes.io/pod-name']?.[0];
    const podUid = status.user?.extra?.['authentication.kubernetes.io/pod-uid']?.[0];
    if (namespace === undefined || serviceAccount === undefined || pod === undefined || podUid === undefined) {
      return { refused: 'the token is not bound to a pod' };
    }
    return { namespace, serviceAccount, pod, podUid };
  }

  /** Starts to follow all objects of a kind, until it is stopped. */
  watch<K extends KindName, I extends string = never>(
    kind: K,
    options: Selection & Omit<WatchedOptions<Kinds[K], I>, 'onError'> = {},
  ): Watched<Kinds[K], I> {
    return new Watched<Kinds[K], I>(this.source(kind, options), {
      ...options,
      onError: (err) => this.#logger.warn({ err, kind }, 'watching the cluster failed; it is tried again'),
    });
  }

  /** What a {@link Watched} reads from. */
  source<K extends KindName>(kind: K, selection: Selection = {}): WatchSource<Kinds[K]> {
    return {
      list: (signal) => this.#list(kind, selection, signal),
      watch: (resourceVersion, signal, on) => this.#watch(kind, selection, resourceVersion, signal, on),
    };
  }

  /** Lets go of the connections that are kept. */
  close(): void {
    this.#requests.destroy();
    this.#watches.destroy();
  }

  async #list<K extends KindName>(
    kind: K,
    selection: Selection,
    signal?: AbortSignal,
  ): Promise<{ readonly items: readonly Stored<Kinds[K]>[]; readonly resourceVersion: string }> {
    const items: Stored<Kinds[K]>[] = [];
    let page: ListAnswer<Stored<Kinds[K]>> | null = null;
    do {
      const query: Record<string, string> = { ...selectors(selection), limit: String(PAGE) };
      if (page?.metadata.continue !== undefined) query['continue'] = page.metadata.continue;
      page = (await this.#request('GET', collectionOf(kind, selection.namespace), {
        query,
        ...(signal === undefined ? {} : { signal }),
      })) as ListAnswer<Stored<Kinds[K]>>;
      // Items of Kubernetes' own lists do not say what they are.
      for (const item of page.items) items.push(cleaned({ ...item, apiVersion: RESOURCES[kind].apiVersion, kind }));
    } while ((page.metadata.continue ?? '') !== '');
    return { items, resourceVersion: page.metadata.resourceVersion };
  }

  async #watch<K extends KindName>(
    kind: K,
    selection: Selection,
    resourceVersion: string,
    signal: AbortSignal,
    on: { readonly connected: () => void; readonly frame: (frame: WatchFrame<Kinds[K]>) => void },
  ): Promise<void> {
    const what = `watch ${collectionOf(kind, selection.namespace)}`;
    const query = {
      ...selectors(selection),
      watch: 'true',
      allowWatchBookmarks: 'true',
      resourceVersion,
      timeoutSeconds: String(Math.round(WATCH_SECONDS * (1 + Math.random() / 3))),
    };
    const response = await this.#open('GET', collectionOf(kind, selection.namespace), { query, signal }, this.#watches);
    try {
      if (response.statusCode !== 200) throw await refusalOf(what, response);
      on.connected();
      response.socket.setKeepAlive(true, KEEP_ALIVE_MS);
      response.socket.setTimeout(WATCH_SILENCE_MS, () => response.destroy(new Error('it is silent')));
      for await (const line of linesOf(response)) {
        const frame = JSON.parse(line) as {
          readonly type: WatchFrame<Kinds[K]>['type'] | 'ERROR';
          readonly object: unknown;
        };
        if (frame.type === 'ERROR') {
          const status = frame.object as Status;
          throw requestError(what, status.code ?? 500, status, undefined);
        }
        on.frame({ type: frame.type, object: cleaned(frame.object as Stored<Kinds[K]>) });
      }
    } catch (error) {
      throw isAppError(error) ? error : unreachable(what, error);
    } finally {
      response.destroy();
    }
  }

  async #request(method: string, path: string, call: Call = {}): Promise<unknown> {
    const what = `${method} ${path}`;
    const deadline = AbortSignal.timeout(REQUEST_MS);
    const signal = call.signal === undefined ? deadline : AbortSignal.any([call.signal, deadline]);
    const response = await this.#open(method, path, { ...call, signal }, this.#requests);
    if ((response.statusCode ?? 500) >= 400) throw await refusalOf(what, response);
    try {
      return cleaned(JSON.parse(await textOf(response)) as Stored<KubernetesObject>);
    } catch (error) {
      throw unreachable(what, error);
    }
  }

  async #open(method: string, path: string, call: Call, agent: HttpAgent): Promise<IncomingMessage> {
    const body = call.body === undefined ? null : JSON.stringify(call.body);
    const options: RequestOptions = {
      method,
      ...(call.signal === undefined ? {} : { signal: call.signal }),
      headers: {
        accept: 'application/json',
        ...(body === null
          ? {}
          : { 'content-type': call.contentType ?? 'application/json', 'content-length': Buffer.byteLength(body) }),
      },
    };
    const url = new URL(`${this.#base.pathname.replace(/\/$/, '')}${path}`, this.#base);
    for (const [name, value] of Object.entries(call.query ?? {})) url.searchParams.set(name, value);
    const attempt = (): Promise<IncomingMessage> =>
      new Promise((resolve, reject) => {
        const request = (url.protocol === 'https:' ? httpsRequest : httpRequest)(url, options, resolve);
        request.on('error', (error) => reject(Object.assign(error, { reused: request.reusedSocket })));
        request.end(body);
      });
    try {
      // Credentials may have to be fetched, and are renewed.
      await this.#config.applyToHTTPSOptions(options);
      // The library's agent is needed for a proxy; else it would make a connection for each request.
      if (this.#config.getCurrentCluster()?.proxyUrl === undefined) options.agent = agent;
      return await attempt().catch((error: Error & { code?: string; reused?: boolean }) => {
        // The server closed the connection while the request was on its way: it has not seen it.
        if (error.reused === true && (error.code === 'ECONNRESET' || error.code === 'EPIPE')) return attempt();
        throw error;
      });
    } catch (error) {
      throw unreachable(`${method} ${path}`, error);
    }
  }
}

interface Call {
  readonly query?: Readonly<Record<string, string>>;
  readonly contentType?: string;
  readonly body?: unknown;
  readonly signal?: AbortSignal;
}

interface ListAnswer<T> {
  readonly items: readonly T[];
  readonly metadata: { readonly resourceVersion: string; readonly continue?: string };
}

interface TokenStatus {
  readonly authenticated?: boolean;
  readonly error?: string;
  readonly audiences?: readonly string[];
  readonly user?: { readonly username?: string; readonly extra?: Readonly<Record<string, readonly string[]>> };
}

function collectionOf(kind: KindName, namespace?: string): string {
  const { apiVersion, plural } = RESOURCES[kind];
  const root = apiVersion.includes('/') ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  return namespace === undefined
    ? `${root}/${plural}`
    : `${root}/namespaces/${encodeURIComponent(namespace)}/${plural}`;
}

function pathOf({ kind, metadata }: Ref): string {
  return `${collectionOf(kind, metadata.namespace)}/${encodeURIComponent(metadata.name)}`;
}

function selectors({ labelSelector, fieldSelector }: Selection): Record<string, string> {
  return {
    ...(labelSelector === undefined ? {} : { labelSelector }),
    ...(fieldSelector === undefined ? {} : { fieldSelector }),
  };
}

/** Without the bookkeeping of who owns which field, which is half of every object. */
function cleaned<T extends KubernetesObject>(object: T): T {
  if ('metadata' in object) delete (object.metadata as { managedFields?: unknown }).managedFields;
  return object;
}

async function absentAs<T>(instead: T, request: Promise<unknown>): Promise<unknown> {
  try {
    return await request;
  } catch (error) {
    if (isAppError(error) && error.code === 'cluster.absent') return instead;
    throw error;
  }
}

async function refusalOf(what: string, response: IncomingMessage): Promise<AppError> {
  let status: Status = {};
  try {
    const text = await textOf(response);
    status = text.startsWith('{') ? (JSON.parse(text) as Status) : { message: text.slice(0, 500) };
  } catch {
    // The status code is what counts.
  }
  return requestError(what, response.statusCode ?? 500, status, response.headers['retry-after']);
}

async function textOf(response: IncomingMessage): Promise<string> {
  response.setEncoding('utf8');
  let text = '';
  for await (const piece of response as AsyncIterable<string>) text += piece;
  return text;
}

async function* linesOf(response: IncomingMessage): AsyncGenerator<string> {
  response.setEncoding('utf8');
  let rest = '';
  for await (const piece of response as AsyncIterable<string>) {
    const lines = (rest + piece).split('\n');
    rest = lines.pop() ?? '';
    yield* lines;
  }
}
