import type { JsonObject, ThinkingBlock } from '@holdfast/contracts';
import { createParser } from 'eventsource-parser';
import { Agent, type Dispatcher, request as httpRequest } from 'undici';
import { z } from 'zod';
import {
  ModelFailure,
  type ModelGateway,
  type ModelReply,
  type ModelRequest,
  type ReplyPart,
  type ReplyPiece,
} from './model.port.ts';

/** Bounds on what a gateway may send in one answer; a reply above them is refused, not stored. */
const MAX_TEXT_CHARS = 8_000_000;
const MAX_CALLS = 256;
const MAX_EVENT_CHARS = 16_000_000;

/** What the gateway's route and its stream look like. */
export interface Dialect {
  /** Below the gateway's `/v1`. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** @param reasons whether the model can be asked to think */
  body(request: ModelRequest, reasons: boolean): object;
  answer(said: Said): DialectAnswer;
}

/** An answer as it streams in. */
export interface DialectAnswer {
  /** One event of the stream. @throws ModelFailure when it tells of one */
  add(data: unknown): void;
  /** False while the stream would have been cut if it ended here. */
  readonly isWhole: boolean;
  readonly outcome: Pick<ModelReply, 'usage' | 'costUsd' | 'finishReason' | 'refusal'>;
}

/** Text, thinking and calls of one answer, put together piece by piece. */
export class Said {
  readonly content: ({ type: 'text'; text: string } | { type: 'thinking'; blocks: Thinking[] })[] = [];
  readonly #onPiece: (piece: ReplyPiece) => void;
  readonly #calls: { name: string; raw: string }[] = [];
  #chars = 0;

  constructor(onPiece: (piece: ReplyPiece) => void) {
    this.#onPiece = onPiece;
  }

  text(piece: string): void {
    if (piece === '') return;
    this.#count(piece);
    const last = this.content.at(-1);
    if (last?.type === 'text') last.text += piece;
    else this.content.push({ type: 'text', text: piece });
    this.#tell('text', piece);
  }

  /** More of the open block of thinking; opens one where there is none. */
  thinking(piece: string): void {
    this.#count(piece);
    const last = this.content.at(-1);
    const block = last?.type === 'thinking' ? last.blocks.at(-1) : undefined;
    if (block?.type === 'thinking' && block.signature === null) block.thinking += piece;
    else this.#addThinking({ type: 'thinking', thinking: piece, signature: null });
    this.#tell('thinking', piece);
  }

  /** Closes the open block of thinking. A signature without one is of thinking that is not shown. */
  signature(signature: string): void {
    this.#count(signature);
    const last = this.content.at(-1);
    const block = last?.type === 'thinking' ? last.blocks.at(-1) : undefined;
    if (block?.type === 'thinking' && block.signature === null) block.signature = signature;
    else {
      this.#addThinking({ type: 'thinking', thinking: '', signature });
      this.#tell('thinking', '');
    }
  }

  redactedThinking(data: string): void {
    this.#count(data);
    this.#addThinking({ type: 'redacted_thinking', data });
    this.#tell('thinking', '');
  }

  /** A new call, whose name and arguments may still grow. */
  call(name: string): { name: string; raw: string } {
    const call = { name, raw: '' };
    this.#calls.push(call);
    if (this.#calls.length > MAX_CALLS) throw oversized();
    return call;
  }

  argumentsOf(call: { raw: string }, piece: string): void {
    this.#count(piece);
    call.raw += piece;
  }

  get reply(): Pick<ModelReply, 'content' | 'calls'> {
    return {
      content: this.content as readonly ReplyPart[],
      calls: this.#calls
        .filter((call) => call.name !== '')
        .map((call) => ({ name: call.name, input: parseArguments(call.raw), rawInput: call.raw })),
    };
  }

  #addThinking(block: Thinking): void {
    const last = this.content.at(-1);
    if (last?.type === 'thinking') last.blocks.push(block);
    else this.content.push({ type: 'thinking', blocks: [block] });
  }

  #tell(type: ReplyPiece['type'], text: string): void {
    this.#onPiece({ part: this.content.length - 1, type, text });
  }

  #count(piece: string): void {
    this.#chars += piece.length;
    if (this.#chars > MAX_TEXT_CHARS) throw oversized();
  }
}
type Thinking = { -readonly [K in keyof ThinkingBlock]: ThinkingBlock[K] } & ThinkingBlock;

/** Arguments as the model wrote them; null when they are no JSON object. */
export function parseArguments(raw: string): JsonObject | null {
  if (raw.trim() === '') return {};
  try {
    const value: unknown = JSON.parse(raw);
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonObject) : null;
  } catch {
    return null;
  }
}

function oversized(): ModelFailure {
  return new ModelFailure('The model gateway sent more than one answer may hold.', {
    errorType: 'model_request_failed_error',
    retryable: false,
  });
}

const errorBody = z.object({
  error: z.union([
    z.string().transform((message) => ({ message, type: null })),
    z.object({ message: z.string().nullish(), type: z.string().nullish() }),
  ]),
});

/** What a gateway’s answer other than 200 means, in either dialect. `retryAfter`: the header, in seconds. */
export function failureOf(status: number, body: string, retryAfter: string | undefined): ModelFailure {
  let detail = '';
  let type = '';
  try {
    const { error } = errorBody.parse(JSON.parse(body));
    detail = error.message ?? '';
    type = error.type ?? '';
  } catch {
    // Not the gateway's own shape: a proxy between, say. The status alone tells.
  }
  const said = detail === '' ? '' : `: ${detail.slice(0, 500)}`;
  const seconds = Number(retryAfter);
  const retryAfterMs =
    retryAfter !== undefined && Number.isFinite(seconds) ? Math.min(60_000, Math.max(0, seconds * 1_000)) : null;
  // LiteLLM's own budgets answer 422 (429 in older versions); waiting does not help.
  if (status === 402 || type === 'budget_exceeded') {
    return new ModelFailure(`The model gateway refused for lack of budget${said}`, {
      errorType: 'billing_error',
      retryable: false,
    });
  }
  if (status === 429) {
    return new ModelFailure(`The model gateway limits the rate${said}`, {
      errorType: 'model_rate_limited_error',
      retryable: true,
      retryAfterMs,
    });
  }
  if (status === 503 || status === 529) {
    return new ModelFailure(`The model is overloaded (HTTP ${status})${said}`, {
      errorType: 'model_overloaded_error',
      retryable: true,
      retryAfterMs,
    });
  }
  if (status >= 500 || status === 408 || status === 409) {
    return new ModelFailure(`The model gateway failed (HTTP ${status})${said}`, {
      errorType: 'model_request_failed_error',
      retryable: true,
      retryAfterMs,
    });
  }
  return new ModelFailure(`The model gateway refused the request (HTTP ${status})${said}`, {
    errorType: 'model_request_failed_error',
    retryable: false,
    contextExceeded:
      status === 413 || (status === 400 && /context|too (long|many tokens)|maximum.*tokens/i.test(detail)),
  });
}

function headerText(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value[0] : value;
}

/** What is known of a model before it is asked. */
export interface ModelManner {
  readonly dialect: Dialect;
  /** Whether it can be asked to think. */
  readonly reasons: boolean;
}

/** A model gateway over HTTP, each model in the dialect that `mannerOf` names. */
export class HttpModelGateway implements ModelGateway {
  readonly #dispatcher: Dispatcher;
  readonly #baseUrl: string;
  readonly #apiKey: string;
  readonly #silenceMs: number;
  readonly #mannerOf: (model: string) => Promise<ModelManner>;

  /** `silenceMs`: a gateway that sends nothing for so long is taken as gone, in milliseconds. */
  constructor(options: {
    baseUrl: string;
    apiKey: string;
    silenceMs: number;
    mannerOf: (model: string) => Promise<ModelManner>;
  }) {
    this.#baseUrl = gatewayRoot(options.baseUrl);
    this.#apiKey = options.apiKey;
    this.#silenceMs = options.silenceMs;
    this.#mannerOf = options.mannerOf;
    this.#dispatcher = new Agent({
      connections: 512,
      pipelining: 1,
      keepAliveTimeout: 30_000,
      connect: { timeout: 10_000 },
    });
  }

  async stream(
    request: ModelRequest,
    options: { signal: AbortSignal; onPiece: (piece: ReplyPiece) => void },
  ): Promise<ModelReply> {
    const { signal, onPiece } = options;
    try {
      return await this.#stream(request, signal, onPiece);
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof ModelFailure) throw error;
      throw new ModelFailure('The model gateway could not be reached or broke off.', {
        errorType: 'model_request_failed_error',
        retryable: true,
        cause: error,
      });
    }
  }

  async #stream(request: ModelRequest, signal: AbortSignal, onPiece: (piece: ReplyPiece) => void): Promise<ModelReply> {
    const { dialect, reasons } = await this.#mannerOf(request.model);
    signal.throwIfAborted();
    const response = await httpRequest(`${this.#baseUrl}/v1${dialect.path}`, {
      method: 'POST',
      dispatcher: this.#dispatcher,
      signal,
      headersTimeout: this.#silenceMs,
      bodyTimeout: this.#silenceMs,
      headers: {
        'content-type': 'application/json',
        accept: 'text/event-stream',
        ...dialect.headers,
        ...(this.#apiKey === '' ? {} : { authorization: `Bearer ${this.#apiKey}` }),
      },
      body: JSON.stringify(dialect.body(request, reasons)),
    });
    if (response.statusCode !== 200) {
      const body = await response.body.text();
      // LiteLLM hands on what its provider said under a name of its own, and gives its own rate limits that name too.
      const retryAfter = response.headers['retry-after'] ?? response.headers['llm_provider-retry-after'];
      throw failureOf(response.statusCode, body.slice(0, 65_536), headerText(retryAfter));
    }
    const said = new Said(onPiece);
    const answer = dialect.answer(said);
    let done = false;
    let thrown: unknown;
    const parser = createParser({
      maxBufferSize: MAX_EVENT_CHARS,
      onError: (error) => {
        if (error.type === 'max-buffer-size-exceeded') thrown = oversized();
      },
      onEvent: ({ data }) => {
        if (done || thrown !== undefined) return;
        if (data === '[DONE]') {
          done = true;
          return;
        }
        try {
          answer.add(JSON.parse(data));
        } catch (error) {
          thrown = error;
        }
      },
    });
    const decoder = new TextDecoder();
    for await (const bytes of response.body) {
      parser.feed(decoder.decode(bytes as Uint8Array, { stream: true }));
      if (thrown !== undefined) throw thrown;
    }
    // A stream that ends before it said why was cut; taking it as whole would store half an answer.
    if (!done && !answer.isWhole) {
      throw new ModelFailure('The model gateway broke off in the middle of an answer.', {
        errorType: 'model_request_failed_error',
        retryable: true,
      });
    }
    const { outcome } = answer;
    const headerCost = Number(headerText(response.headers['x-litellm-response-cost']));
    return {
      ...said.reply,
      ...outcome,
      costUsd: outcome.costUsd ?? (Number.isFinite(headerCost) && headerCost > 0 ? headerCost : null),
      gatewayCallId: headerText(response.headers['x-litellm-call-id']) ?? null,
    };
  }

  /** Closes the kept connections. */
  async close(): Promise<void> {
    await this.#dispatcher.close();
  }
}

/** A gateway's address without the `/v1` that it may be given with. */
export function gatewayRoot(baseUrl: string): string {
  return baseUrl.replace(/\/+$/, '').replace(/\/v1$/, '');
}
