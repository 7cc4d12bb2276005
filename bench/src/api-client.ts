import { performance } from 'node:perf_hooks';
import { type Frame, parseFrames, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { Agent, type Dispatcher, request } from 'undici';
import type { Script } from './scripted-model.ts';

/**
 * The client side of the measurements: kept connections, little work per byte. Setting things up, where time does not
 * count, is `setup`'s.
 */
export class ApiClient {
  readonly setup: TestClient;
  readonly #url: string;
  readonly #headers: Record<string, string>;
  readonly #dispatcher = new Agent({ pipelining: 1, bodyTimeout: 0, headersTimeout: 60_000 });

  constructor(platform: Pick<TestPlatform, 'apiUrl' | 'apiKey'>) {
    this.setup = new TestClient(platform);
    this.#url = platform.apiUrl;
    this.#headers = { 'x-api-key': platform.apiKey, 'content-type': 'application/json' };
  }

  /** Sends a message that the model answers by script; resolves when the whole 200 is here, with the time of that. */
  send(sessionId: string, script: Script): Promise<number> {
    return this.post(`/v1/sessions/${sessionId}/events`, { events: [userMessage(JSON.stringify(script))] });
  }

  async post(path: string, body: unknown): Promise<number> {
    const answer = await this.#request(path, { method: 'POST', body: JSON.stringify(body) });
    await answer.body.dump();
    return performance.now();
  }

  async get(path: string): Promise<string> {
    return (await this.#request(path, { method: 'GET' })).body.text();
  }

  /** Opens a session's event stream from now on; `onFrame` gets each frame with the time of its last byte. */
  async stream(sessionId: string, onFrame: OnFrame = () => undefined, query = ''): Promise<EventStream> {
    const controller = new AbortController();
    const answer = await this.#request(`${streamPath(sessionId)}${query}`, {
      method: 'GET',
      signal: controller.signal,
    });
    return new EventStream(answer.body, controller, onFrame);
  }

  /** Replays a session's stream from the start up to the frame of a version; says when that was there. */
  async replay(sessionId: string, lastVersion: number): Promise<{ endedAt: number; text: string }> {
    const controller = new AbortController();
    const answer = await this.#request(`${streamPath(sessionId)}?after=0`, {
      method: 'GET',
      signal: controller.signal,
    });
    const last = `id: ${lastVersion}\n`;
    const parts: Buffer[] = [];
    let tail = '';
    for await (const part of answer.body as AsyncIterable<Buffer>) {
      parts.push(part);
      tail = tail.slice(-4_096) + part.toString('latin1', Math.max(0, part.length - 4_096));
      if (tail.includes(last) && tail.endsWith('\n\n')) break;
    }
    const endedAt = performance.now();
    controller.abort();
    return { endedAt, text: Buffer.concat(parts).toString('latin1') };
  }

  async close(): Promise<void> {
    await this.#dispatcher.destroy();
  }

  async #request(
    path: string,
    options: { method: 'GET' | 'POST'; body?: string; signal?: AbortSignal },
  ): Promise<Dispatcher.ResponseData> {
    const answer = await request(this.#url + path, {
      ...options,
      headers: this.#headers,
      dispatcher: this.#dispatcher,
    });
    if (answer.statusCode !== 200) throw new Error(`${path}: ${answer.statusCode} ${await answer.body.text()}`);
    return answer;
  }
}

const streamPath = (sessionId: string): string => `/v1/sessions/${sessionId}/events/stream`;
type OnFrame = (frame: Frame, at: number) => void;

/** One open event stream. */
export class EventStream {
  readonly #controller: AbortController;
  readonly #waiting = new Map<string, { resolve: (at: number) => void; reject: (error: Error) => void }>();
  #broken: Error | null = null;

  constructor(body: Dispatcher.ResponseData['body'], controller: AbortController, onFrame: OnFrame) {
    this.#controller = controller;
    let rest = '';
    body.on('data', (bytes: Buffer) => {
      const at = performance.now();
      rest += bytes.toString('latin1');
      const parsed = parseFrames(rest);
      rest = parsed.rest;
      for (const frame of parsed.frames) {
        onFrame(frame, at);
        this.#waiting.get(frame.event)?.resolve(at);
        this.#waiting.delete(frame.event);
      }
    });
    const over = (error: Error): void => {
      this.#broken = error;
      for (const { reject } of this.#waiting.values()) reject(error);
    };
    body.on('error', over);
    body.on('end', () => over(new Error('the stream ended')));
  }

  /** When the last byte of the next event of that type arrives. Asked for before what causes it is sent. */
  next(type: string): Promise<number> {
    if (this.#broken !== null) return Promise.reject(this.#broken);
    return new Promise((resolve, reject) => this.#waiting.set(type, { resolve, reject }));
  }

  close(): void {
    this.#controller.abort();
  }
}
