import { setTimeout as sleep } from 'node:timers/promises';
import type { TestPlatform } from './platform.ts';

export interface Frame {
  /** The log version; null on frames that are not stored. */
  readonly id: number | null;
  readonly event: string;
  readonly data: {
    readonly id?: string;
    readonly type: string;
    readonly processed_at?: string | null;
    readonly content?: readonly { readonly text: string }[];
    readonly [field: string]: unknown;
  };
}
export type RequestOptions = Omit<RequestInit, 'headers'> & { json?: unknown; headers?: Record<string, string> };

/** Complete frames at the start of a stream's text, without pings, and the rest of the text. */
export function parseFrames(text: string): { frames: Frame[]; rest: string } {
  const parts = text.split('\n\n');
  const rest = parts.pop() ?? '';
  const frames = parts.map((part) => {
    const lines = Object.fromEntries(
      part.split('\n').map((line) => [line.slice(0, line.indexOf(': ')), line.slice(line.indexOf(': ') + 2)]),
    );
    return {
      id: lines['id'] === undefined ? null : Number(lines['id']),
      event: lines['event'] ?? '',
      data: JSON.parse(lines['data'] ?? '{}') as Frame['data'],
    };
  });
  return { frames: frames.filter((frame) => frame.event !== 'ping'), rest };
}

/** Raw requests to a platform, for what the SDKs do not do. */
export class TestClient {
  readonly #platform: Pick<TestPlatform, 'apiUrl' | 'apiKey'>;

  constructor(platform: Pick<TestPlatform, 'apiUrl' | 'apiKey'>) {
    this.#platform = platform;
  }

  /** One request with the platform's key; `json` makes it a POST. */
  api(path: string, options: RequestOptions = {}): Promise<Response> {
    const { json, ...rest } = options;
    return fetch(this.#platform.apiUrl + path, {
      ...rest,
      headers: {
        'x-api-key': this.#platform.apiKey,
        ...(json === undefined ? {} : { 'content-type': 'application/json' }),
        ...rest.headers,
      },
      ...(json === undefined ? {} : { method: rest.method ?? 'POST', body: JSON.stringify(json) }),
    });
  }

  /** The answer's body. @throws when it is not a 2xx. */
  async json<T>(path: string, options: RequestOptions = {}): Promise<T> {
    const response = await this.api(path, options);
    const text = await response.text();
    if (!response.ok) throw new Error(`${path}: ${response.status} ${text.slice(0, 500)}`);
    return JSON.parse(text) as T;
  }

  /** Sends until it is acknowledged, as a client does whose connection or platform breaks; stored once by its key. */
  async insist<T>(path: string, json: unknown, idempotencyKey: string, patienceMs: number): Promise<T> {
    for (const deadline = Date.now() + patienceMs; ; await sleep(200)) {
      try {
        const response = await this.api(path, {
          json,
          headers: { 'idempotency-key': idempotencyKey },
          signal: AbortSignal.timeout(10_000),
        });
        if (response.ok) return (await response.json()) as T;
        const text = await response.text();
        if (response.status < 500 && response.status !== 429) throw new FinalAnswer(`${response.status} ${text}`);
      } catch (error) {
        if (error instanceof FinalAnswer || Date.now() > deadline) throw error;
      }
      if (Date.now() > deadline) throw new Error(`${path} was not acknowledged within ${patienceMs} ms.`);
    }
  }

  /** Reads frames of a stream until `enough`, at most 30 s. */
  async frames(
    path: string,
    enough: (all: readonly Frame[]) => boolean,
    headers: Record<string, string> = {},
  ): Promise<Frame[]> {
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), 30_000);
    try {
      const response = await this.api(path, { headers, signal: controller.signal });
      if (response.body === null) throw new Error(`${path}: ${response.status} without a body`);
      const all: Frame[] = [];
      let text = '';
      for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
        const { frames, rest } = parseFrames(text + piece);
        text = rest;
        all.push(...frames);
        if (enough(all)) break;
      }
      return all;
    } finally {
      clearTimeout(timer);
      controller.abort();
    }
  }

  /**
   * Follows a session over SSE until it is told to end, and after every cut goes on by its cursor. Returns every durable
   * frame. It cuts a stream itself where `cutMs` says after how long; `opened` hears each answer's status, or that there
   * was none.
   */
  async follow(
    sessionId: string,
    over: AbortSignal,
    { cutMs, opened }: { cutMs?: () => number; opened?: (status: number | null) => void } = {},
  ): Promise<{ id: number; json: string }[]> {
    const seen: { id: number; json: string }[] = [];
    while (!over.aborted) {
      const cut = cutMs === undefined ? over : AbortSignal.any([over, AbortSignal.timeout(cutMs())]);
      let status: number | null = null;
      try {
        const response = await this.api(`/v1/sessions/${sessionId}/events/stream?event_deltas[]=agent.message`, {
          headers: { 'last-event-id': String(seen.at(-1)?.id ?? 0) },
          signal: cut,
        });
        status = response.status;
        opened?.(status);
        let text = '';
        for await (const piece of (response.body ?? new ReadableStream()).pipeThrough(new TextDecoderStream())) {
          const { frames, rest } = parseFrames(text + piece);
          text = rest;
          for (const frame of frames)
            if (frame.id !== null) seen.push({ id: frame.id, json: JSON.stringify(frame.data) });
        }
      } catch {
        // Cut, here or there; the cursor is what was seen.
        if (status === null && !cut.aborted) opened?.(null);
        await sleep(100);
      }
    }
    return seen;
  }

  /** A new agent with the whole toolset and a session with it. */
  async session(tools: unknown[] = [{ type: 'agent_toolset_20260401' }]): Promise<string> {
    const agent = await this.json<{ id: string }>('/v1/agents', { json: { name: 'spec', model: 'demo', tools } });
    return (await this.json<{ id: string }>('/api/sessions', { json: { agent_id: agent.id } })).id;
  }

  /** Every event of a session, in the log's order. */
  async events(sessionId: string): Promise<Frame['data'][]> {
    const all: Frame['data'][] = [];
    for (let page: string | null = ''; page !== null; ) {
      const answer: { data: Frame['data'][]; next_page: string | null } = await this.json(
        `/v1/sessions/${sessionId}/events?limit=1000${page === '' ? '' : `&page=${page}`}`,
      );
      all.push(...answer.data);
      page = answer.next_page;
    }
    return all;
  }

  /** Waits until a session is idle and nothing waits in it; returns its events. */
  async untilIdle(sessionId: string, timeoutMs: number): Promise<Frame['data'][]> {
    for (const deadline = Date.now() + timeoutMs; ; await sleep(100)) {
      const session = await this.json<{ status: string }>(`/v1/sessions/${sessionId}`);
      if (session.status === 'idle') {
        const events = await this.events(sessionId);
        const last = events[events.length - 1];
        if (last?.type === 'session.status_idle') return events;
      }
      if (Date.now() > deadline) throw new Error(`${sessionId} is still ${session.status} after ${timeoutMs} ms.`);
    }
  }
}

class FinalAnswer extends Error {}

export const userMessage = (text: string) => ({
  type: 'user.message' as const,
  content: [{ type: 'text' as const, text }],
});
