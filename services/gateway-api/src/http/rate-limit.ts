import { AppError } from '@holdfast/contracts';

/** A key that was quiet may send this many seconds' worth at once. */
const BURST_SECONDS = 10;

/** Bounds how many requests a key sends, per gateway process: a bucket that fills evenly. */
export class RateLimit {
  readonly #perMs: number;
  readonly #burst: number;
  readonly #buckets = new Map<string, { tokens: number; atMs: number }>();

  constructor(requestsPerMinute: number) {
    this.#perMs = requestsPerMinute / 60_000;
    this.#burst = Math.max(1, this.#perMs * 1_000 * BURST_SECONDS);
  }

  /** Counts one request. @throws AppError `request.too-many`, with the milliseconds after which the next may come. */
  take(key: string, nowMs: number): void {
    const bucket = this.#buckets.get(key) ?? { tokens: this.#burst, atMs: nowMs };
    const tokens = Math.min(this.#burst, bucket.tokens + Math.max(0, nowMs - bucket.atMs) * this.#perMs);
    const allowed = tokens >= 1;
    this.#buckets.set(key, { tokens: allowed ? tokens - 1 : tokens, atMs: nowMs });
    if (allowed) return;
    throw new AppError('exhausted', 'request.too-many', 'This key sends too many requests; wait a moment.', {
      details: { retryAfterMs: Math.ceil((1 - tokens) / this.#perMs) },
    });
  }
}
