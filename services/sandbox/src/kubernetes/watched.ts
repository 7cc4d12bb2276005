import { setTimeout as sleep } from 'node:timers/promises';
import { AppError, isAppError } from '@holdfast/contracts';
import { backoffMs } from './backoff.ts';
import type { KubernetesObject, Stored } from './kinds.ts';

export interface WatchFrame<T extends KubernetesObject> {
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK';
  readonly object: Stored<T>;
}

/** What a {@link Watched} reads from: an API server, as far as one kind is concerned. */
export interface WatchSource<T extends KubernetesObject> {
  list(signal: AbortSignal): Promise<{ readonly items: readonly Stored<T>[]; readonly resourceVersion: string }>;
  /** Tells `connected`, then every frame after `resourceVersion`; resolves when the server ends it in good order. */
  watch(
    resourceVersion: string,
    signal: AbortSignal,
    on: { readonly connected: () => void; readonly frame: (frame: WatchFrame<T>) => void },
  ): Promise<void>;
}

export interface WatchedOptions<T extends KubernetesObject, I extends string> {
  /** Keys by which objects are found, per index. */
  readonly indexes?: Readonly<Record<I, (object: Stored<T>) => string | null>>;
  /** Everything is listed anew so often, give or take a tenth. @default 300_000 */
  readonly relistMs?: number;
  /** Told once in a row of failures, which are tried again, and of every error of a listener. */
  readonly onError: (error: unknown) => void;
}

export type ChangeKind = 'added' | 'changed' | 'removed';
export type ChangeListener<T extends KubernetesObject> = (
  object: Stored<T>,
  previous: Stored<T> | null,
  kind: ChangeKind,
) => void;

const RETRY_MS = 200;
const MAX_RETRY_MS = 2_000;
const RELIST_MS = 5 * 60_000;
/** A watch that ends sooner than this is not taken as a sign of health. */
const SHORT_MS = 1_000;

/**
 * All objects of one kind as the API server has them, a moment late: listed, then watched, and listed again from time to
 * time, when the server no longer keeps the version that was seen last, and after refusals. Every difference is told
 * once, also those that no watch told. An object that was deleted and made anew is told as removed and added. While the
 * server does not answer, the last that was seen stays.
 *
 * It is a cache: what this service has just written may not be in it yet.
 */
export class Watched<T extends KubernetesObject, I extends string = never> {
  readonly #source: WatchSource<T>;
  readonly #options: WatchedOptions<T, I>;
  readonly #objects = new Map<string, Stored<T>>();
  readonly #indexes: ReadonlyMap<I, { readonly keyOf: (object: Stored<T>) => string | null; readonly found: Index<T> }>;
  readonly #listeners: ChangeListener<T>[] = [];
  readonly #stop = new AbortController();
  readonly #synced = Promise.withResolvers<void>();
  readonly #run: Promise<void>;
  #unhealthySince: Date | null = new Date();
  #failures = 0;
  #told = false;

  constructor(source: WatchSource<T>, options: WatchedOptions<T, I>) {
    this.#source = source;
    this.#options = options;
    this.#indexes = new Map(
      Object.entries<(object: Stored<T>) => string | null>(options.indexes ?? {}).map(([name, key]) => [
        name as I,
        { keyOf: key, found: new Map() },
      ]),
    );
    // Whoever does not wait for it must not be ended by its rejection.
    this.#synced.promise.catch(() => {});
    this.#run = this.#loop();
  }

  /** Since when nothing is heard of the server; null while it is heard. */
  get unhealthySince(): Date | null {
    return this.#unhealthySince;
  }

  get healthy(): boolean {
    return this.#unhealthySince === null;
  }

  /** Resolves when everything was seen once. @throws AppError `cluster.watch-stopped` when it was stopped before */
  synced(): Promise<void> {
    return this.#synced.promise;
  }

  get(namespace: string | null, name: string): Stored<T> | null {
    return this.#objects.get(`${namespace ?? ''}/${name}`) ?? null;
  }

  list(): IterableIterator<Stored<T>> {
    return this.#objects.values();
  }

  /** Objects that have this key in the index. */
  by(index: I, key: string): readonly Stored<T>[] {
    return [...(this.#indexes.get(index)?.found.get(key) ?? [])];
  }

  /** Told of every change from now on, in order; `previous` is null for what was added. */
  onChange(listener: ChangeListener<T>): void {
    this.#listeners.push(listener);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#synced.reject(new AppError('unavailable', 'cluster.watch-stopped', 'The watch was stopped.'));
    await this.#run;
  }

  async #loop(): Promise<void> {
    const { signal } = this.#stop;
    let version: string | null = null;
    let relistAtMs = 0;
    while (!signal.aborted) {
      try {
        if (version === null || Date.now() >= relistAtMs) {
          version = await this.#relist(signal);
          relistAtMs = Date.now() + (this.#options.relistMs ?? RELIST_MS) * (0.9 + Math.random() / 5);
        }
        const startedAtMs = Date.now();
        const until = AbortSignal.any([signal, AbortSignal.timeout(Math.max(1, Math.ceil(relistAtMs - startedAtMs)))]);
        const seen = await this.#watch(version, until);
        if (seen !== version || until.aborted || Date.now() - startedAtMs >= SHORT_MS) {
          this.#failures = 0;
          this.#told = false;
        }
        // A server that ends every watch at once would be asked without end.
        else await this.#pause(signal);
        version = seen;
      } catch (error) {
        if (signal.aborted) return;
        // What is not a broken connection is an answer to the version that was asked for.
        if (!isBroken(error)) version = null;
        const gone = isAppError(error) && error.code === 'cluster.gone';
        if (gone && this.#failures === 0) {
          this.#failures = 1;
          continue;
        }
        this.#unhealthySince ??= new Date();
        if (!this.#told) this.#options.onError(error);
        this.#told = true;
        await this.#pause(signal, isAppError(error) ? error.details['retryAfterMs'] : null);
      }
    }
  }

  async #pause(signal: AbortSignal, atLeastMs?: unknown): Promise<void> {
    this.#failures += 1;
    const ms = Math.max(
      backoffMs(this.#failures, RETRY_MS, MAX_RETRY_MS),
      typeof atLeastMs === 'number' ? Math.min(atLeastMs, MAX_RETRY_MS) : 0,
    );
    await sleep(ms, undefined, { signal }).catch(() => {});
  }

  async #relist(signal: AbortSignal): Promise<string> {
    const { items, resourceVersion } = await this.#source.list(signal);
    this.#heard();
    const listed = new Set(items.map(keyOf));
    for (const [key, object] of this.#objects) if (!listed.has(key)) this.#remove(key, object);
    for (const object of items) this.#put(object);
    this.#synced.resolve();
    return resourceVersion;
  }

  /** Returns the version that was seen last. */
  async #watch(from: string, until: AbortSignal): Promise<string> {
    let version = from;
    try {
      await this.#source.watch(from, until, {
        connected: () => this.#heard(),
        frame: ({ type, object }) => {
          version = object.metadata.resourceVersion;
          if (type === 'DELETED') this.#remove(keyOf(object), object);
          else if (type !== 'BOOKMARK') this.#put(object);
        },
      });
    } catch (error) {
      // What came before a connection broke was seen: it goes on from there.
      if (until.aborted || (version !== from && isBroken(error))) return version;
      throw error;
    }
    return version;
  }

  #heard(): void {
    this.#unhealthySince = null;
  }

  #put(object: Stored<T>): void {
    const key = keyOf(object);
    const previous = this.#objects.get(key) ?? null;
    if (previous?.metadata.uid === object.metadata.uid) {
      if (previous.metadata.resourceVersion === object.metadata.resourceVersion) return;
      this.#unindex(previous);
      this.#objects.set(key, object);
      this.#index(object);
      this.#tell(object, previous, 'changed');
      return;
    }
    if (previous !== null) this.#remove(key, previous);
    this.#objects.set(key, object);
    this.#index(object);
    this.#tell(object, null, 'added');
  }

  #remove(key: string, last: Stored<T>): void {
    const previous = this.#objects.get(key);
    if (previous === undefined) return;
    this.#objects.delete(key);
    this.#unindex(previous);
    this.#tell(last, previous, 'removed');
  }

  #index(object: Stored<T>): void {
    for (const { keyOf: indexKey, found } of this.#indexes.values()) {
      const key = indexKey(object);
      if (key === null) continue;
      const same = found.get(key);
      if (same === undefined) found.set(key, new Set([object]));
      else same.add(object);
    }
  }

  #unindex(object: Stored<T>): void {
    for (const { keyOf: indexKey, found } of this.#indexes.values()) {
      const key = indexKey(object);
      if (key === null) continue;
      const same = found.get(key);
      same?.delete(object);
      if (same?.size === 0) found.delete(key);
    }
  }

  #tell(object: Stored<T>, previous: Stored<T> | null, kind: ChangeKind): void {
    for (const listener of this.#listeners) {
      try {
        listener(object, previous, kind);
      } catch (error) {
        this.#options.onError(error);
      }
    }
  }
}

type Index<T extends KubernetesObject> = Map<string, Set<Stored<T>>>;

function keyOf({ metadata }: KubernetesObject): string {
  return `${metadata.namespace ?? ''}/${metadata.name}`;
}

/** Whether there was no answer, which says nothing about what was asked. */
function isBroken(error: unknown): boolean {
  return isAppError(error) && error.details['status'] === null;
}
