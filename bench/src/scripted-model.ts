import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

/** What the model does with a message: the message's text is this as JSON. */
export interface Script {
  /** Names the calls that the message causes. */
  readonly id: string;
  /** The answer begins so much later; 0 = at once. */
  readonly afterMs?: number;
  /** Pieces of the answer; 1 = the whole at once. */
  readonly chunks?: number;
  readonly everyMs?: number;
  /** First step: a bash call with this command. The second step answers. */
  readonly bash?: string;
  /** The same with a read call of this file. */
  readonly read?: string;
}

/** One model request as the gateway saw it; times by `performance.now()`. */
export interface ModelCall {
  /** The request's last byte arrived. */
  readonly requestedAt: number;
  /** Each piece of text was handed to the socket. */
  readonly chunksAt: number[];
  /** When the exchange was over: the answer was out, or the caller had hung up. */
  readonly over: Promise<{ readonly at: number; readonly aborted: boolean }>;
}

/** Text of the n-th piece; all have the same length. */
export const CHUNK_CHARS = 10;
const chunkText = (n: number): string => `${String(n).padStart(CHUNK_CHARS - 1, '0')} `;

const frame = (choices: unknown[], extra: object = {}): string =>
  `data: ${JSON.stringify({ id: 'chatcmpl-bench', object: 'chat.completion.chunk', created: 0, model: 'demo', choices, ...extra })}\n\n`;
const delta = (content: object, finish: string | null = null): string =>
  frame([{ index: 0, delta: content, finish_reason: finish }]);
const ending = (finish: string): string =>
  `${delta({}, finish)}${frame([], { usage: { prompt_tokens: 10, completion_tokens: 5, total_tokens: 15 } })}data: [DONE]\n\n`;
const OPENING = delta({ role: 'assistant', content: '' });

interface ChatRequest {
  readonly messages: readonly { readonly role: string; readonly content: string }[];
}

/** A model gateway in this process: OpenAI's chat completions, streaming, answered by script and on time. */
export class ScriptedModel {
  readonly #server: Server;
  readonly #calls = new Map<string, ModelCall[]>();
  readonly #waiting = new Map<string, () => void>();

  private constructor() {
    this.#server = createServer((request, response) => {
      this.#serve(request, response).catch((error: unknown) => response.destroy(error as Error));
    });
    this.#server.keepAliveTimeout = 120_000;
  }

  static async start(): Promise<ScriptedModel> {
    const model = new ScriptedModel();
    await new Promise<void>((resolve) => model.#server.listen(0, '127.0.0.1', resolve));
    return model;
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === 'string') throw new Error('the model does not listen');
    return `http://127.0.0.1:${address.port}`;
  }

  /** The n-th request (from 0) that a script caused, as soon as it is there. */
  async call(id: string, n = 0): Promise<ModelCall> {
    for (;;) {
      const found = this.#calls.get(id)?.[n];
      if (found !== undefined) return found;
      await new Promise<void>((resolve) => this.#waiting.set(id, resolve));
    }
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.method === 'GET') {
      const data = [{ id: 'demo', object: 'model', created: 0, owned_by: 'bench' }];
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ object: 'list', data }));
      return;
    }
    const parts: Buffer[] = [];
    for await (const part of request as AsyncIterable<Buffer>) parts.push(part);
    const requestedAt = performance.now();
    const { messages } = JSON.parse(Buffer.concat(parts).toString()) as ChatRequest;
    const prompt = messages.findLast(({ role }) => role === 'user')?.content ?? '';
    const script = JSON.parse(prompt) as Script;
    const over = new Promise<{ at: number; aborted: boolean }>((resolve) => {
      response.once('close', () => resolve({ at: performance.now(), aborted: !response.writableFinished }));
    });
    const call: ModelCall = { requestedAt, chunksAt: [], over };
    this.#note(script.id, call);
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    const { bash, read } = script;
    if ((bash ?? read) !== undefined && messages.at(-1)?.role !== 'tool') {
      const [name, input] = bash === undefined ? ['read', { file_path: read }] : ['bash', { command: bash }];
      const calls = [
        { index: 0, id: `call_${script.id}`, type: 'function', function: { name, arguments: JSON.stringify(input) } },
      ];
      response.end(`${OPENING}${delta({ tool_calls: calls })}${ending('tool_calls')}`);
      return;
    }
    const { chunks = 1, everyMs = 0, afterMs = 0 } = script;
    // What is late by a timer's slack is not late for the next piece.
    const startAt = performance.now() + afterMs;
    for (let n = 0; n < chunks && !response.destroyed; n++) {
      const waitMs = startAt + n * everyMs - performance.now();
      if (waitMs > 0) await sleep(waitMs);
      call.chunksAt.push(performance.now());
      const text = `${n === 0 ? OPENING : ''}${delta({ content: chunkText(n) })}`;
      if (n < chunks - 1) response.write(text);
      else response.end(text + ending('stop'));
    }
  }

  #note(id: string, call: ModelCall): void {
    const calls = this.#calls.get(id) ?? [];
    calls.push(call);
    this.#calls.set(id, calls);
    this.#waiting.get(id)?.();
    this.#waiting.delete(id);
  }
}
