import type { JsonObject, ModelUsage, StoredBlock } from '@holdfast/contracts';
import { createParser } from 'eventsource-parser';
import { Agent, type Dispatcher, request as httpRequest } from 'undici';
import { z } from 'zod';
import type { ConversationItem } from '../turn/conversation.ts';
import { ModelFailure, type ModelGateway, type ModelReply, type ModelRequest } from './model.port.ts';

const chunkSchema = z.object({
  error: z.object({ message: z.string().optional(), code: z.union([z.string(), z.number()]).nullish() }).nullish(),
  choices: z
    .array(
      z.object({
        delta: z
          .object({
            content: z.string().nullish(),
            tool_calls: z
              .array(
                z.object({
                  index: z.number().int().min(0).max(1_000).nullish(),
                  id: z.string().nullish(),
                  function: z.object({ name: z.string().nullish(), arguments: z.string().nullish() }).nullish(),
                }),
              )
              .nullish(),
          })
          .nullish(),
        finish_reason: z.string().nullish(),
      }),
    )
    .nullish(),
  usage: z
    .object({
      prompt_tokens: z.number().nullish(),
      completion_tokens: z.number().nullish(),
      prompt_tokens_details: z
        .object({ cached_tokens: z.number().nullish(), cache_creation_tokens: z.number().nullish() })
        .nullish(),
      cache_creation_input_tokens: z.number().nullish(),
      cost: z.number().nullish(),
    })
    .nullish(),
});
type Chunk = z.infer<typeof chunkSchema>;

/** Bounds on what a gateway may send in one answer; a reply above them is refused, not stored. */
const MAX_TEXT_CHARS = 8_000_000;
const MAX_CALLS = 256;
const MAX_EVENT_CHARS = 16_000_000;

interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | 'tool';
  content: unknown;
  tool_calls?: { id: string; type: 'function'; function: { name: string; arguments: string } }[];
  tool_call_id?: string;
}

/** Text of stored blocks; blobs were inlined before. */
function plainText(blocks: readonly StoredBlock[]): string {
  return blocks.map((block) => (block.type === 'text' ? block.text : '')).join('');
}

const textPart = (text: string): object => ({ type: 'text', text });

function partsOf(block: StoredBlock): object[] {
  if (block.type === 'text') return [textPart(block.text)];
  if (block.type === 'x_blob') return [textPart('[content that cannot be shown]')];
  const { source } = block;
  const data = source.type === 'base64' ? `data:${source.media_type};base64,${source.data}` : '';
  if (block.type === 'image')
    return [{ type: 'image_url', image_url: { url: source.type === 'url' ? source.url : data } }];
  const title = block.title ?? 'document';
  const about = block.context == null ? [] : [textPart(block.context)];
  if (source.type === 'text') return [...about, textPart(`${title}\n\n${source.data}`)];
  if (source.type === 'url') return [...about, textPart(`${title}: ${source.url}`)];
  return [...about, { type: 'file', file: { filename: title, file_data: data } }];
}

function chatMessage(item: ConversationItem): ChatMessage {
  switch (item.role) {
    case 'system':
      return { role: 'system', content: item.text };
    case 'user':
      return item.content.every((block) => block.type === 'text')
        ? { role: 'user', content: plainText(item.content) }
        : { role: 'user', content: item.content.flatMap(partsOf) };
    case 'assistant': {
      const text = plainText(item.text);
      const message: ChatMessage = { role: 'assistant', content: text === '' && item.calls.length > 0 ? null : text };
      if (item.calls.length > 0) {
        message.tool_calls = item.calls.map((call) => ({
          id: call.id,
          type: 'function',
          function: { name: call.name, arguments: JSON.stringify(call.input) },
        }));
      }
      return message;
    }
    case 'tool': {
      const text = plainText(item.content);
      return { role: 'tool', tool_call_id: item.callId, content: item.isError ? `Error: ${text}` : text };
    }
  }
}

/** The dialect's tool messages hold text alone: what else a result has comes from the user, after the last result. */
function chatMessages(items: readonly ConversationItem[]): ChatMessage[] {
  const messages: ChatMessage[] = [];
  let attached: object[] = [];
  for (const item of items) {
    if (item.role !== 'tool' && attached.length > 0) {
      messages.push({ role: 'user', content: attached });
      attached = [];
    }
    messages.push(chatMessage(item));
    if (item.role !== 'tool') continue;
    const more = item.content.filter((block) => block.type !== 'text');
    if (more.length > 0) attached.push(textPart(`Part of the result of ${item.callId}:`), ...more.flatMap(partsOf));
  }
  if (attached.length > 0) messages.push({ role: 'user', content: attached });
  return messages;
}

function requestBody(request: ModelRequest): string {
  const messages: ChatMessage[] =
    request.system === null || request.system === '' ? [] : [{ role: 'system', content: request.system }];
  messages.push(...chatMessages(request.conversation));
  return JSON.stringify({
    model: request.model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    ...(request.effort === 'high' ? {} : { reasoning_effort: request.effort }),
    max_tokens: request.maxOutputTokens,
    ...(request.tools.length === 0
      ? {}
      : {
          tools: request.tools.map((tool) => ({
            type: 'function',
            function: { name: tool.name, description: tool.description, parameters: tool.inputSchema },
          })),
        }),
  });
}

function usageOf(usage: Chunk['usage']): ModelUsage {
  const whole = (value: number | null | undefined): number => Math.max(0, Math.trunc(value ?? 0));
  const read = whole(usage?.prompt_tokens_details?.cached_tokens);
  const created = whole(usage?.cache_creation_input_tokens ?? usage?.prompt_tokens_details?.cache_creation_tokens);
  return {
    // OpenAI counts cached tokens inside prompt_tokens, the wire contract beside them.
    input_tokens: Math.max(0, whole(usage?.prompt_tokens) - read - created),
    output_tokens: whole(usage?.completion_tokens),
    cache_creation_input_tokens: created,
    cache_read_input_tokens: read,
  };
}

function parseArguments(raw: string): JsonObject | null {
  if (raw.trim() === '') return {};
  try {
    const value: unknown = JSON.parse(raw);
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonObject) : null;
  } catch {
    return null;
  }
}

/** Reads the gateway's answer as it streams in. */
class Answer {
  text = '';
  finishReason: string | null = null;
  usage: Chunk['usage'] = null;
  #calls: { name: string; raw: string }[] = [];
  #byIndex = new Map<number, { name: string; raw: string }>();

  add(chunk: Chunk, onText: (text: string) => void): void {
    if (chunk.usage) this.usage = chunk.usage;
    for (const choice of chunk.choices ?? []) {
      if (choice.finish_reason) this.finishReason = choice.finish_reason;
      const content = choice.delta?.content;
      if (content) {
        this.text += content;
        if (this.text.length > MAX_TEXT_CHARS) throw oversized();
        onText(content);
      }
      for (const part of choice.delta?.tool_calls ?? [])
        this.#addCall(part.index ?? 0, part.id ?? '', part.function ?? {});
    }
  }

  #addCall(
    index: number,
    id: string,
    part: { name?: string | null | undefined; arguments?: string | null | undefined },
  ): void {
    let call = this.#byIndex.get(index);
    // Some upstreams give every call index 0 and tell them apart by a new id and name.
    if (
      call === undefined ||
      (id !== '' && part.name && call.name !== '' && call.raw !== '' && parseArguments(call.raw) !== null)
    ) {
      call = { name: '', raw: '' };
      this.#byIndex.set(index, call);
      this.#calls.push(call);
      if (this.#calls.length > MAX_CALLS) throw oversized();
    }
    if (part.name && call.name === '') call.name = part.name;
    call.raw += part.arguments ?? '';
    if (call.raw.length > MAX_TEXT_CHARS) throw oversized();
  }

  get calls(): ModelReply['calls'] {
    return this.#calls
      .filter((call) => call.name !== '')
      .map((call) => ({ name: call.name, input: parseArguments(call.raw), rawInput: call.raw }));
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

function failureOf(status: number, body: string, retryAfter: string | undefined): ModelFailure {
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

/**
 * LiteLLM's own dialect, `POST /v1/chat/completions` with streaming. It keeps tool arguments for OpenAI-style and
 * Anthropic-style upstreams alike (`/v1/messages` over an OpenAI-style upstream lost them in LiteLLM 1.106).
 */
export class ChatCompletionsGateway implements ModelGateway {
  readonly #dispatcher: Dispatcher;
  readonly #url: string;
  readonly #apiKey: string;
  readonly #silenceMs: number;

  /** `silenceMs`: a gateway that sends nothing for so long is taken as gone, in milliseconds. */
  constructor(options: { baseUrl: string; apiKey: string; silenceMs: number }) {
    this.#url = `${options.baseUrl.replace(/\/+$/, '').replace(/\/v1$/, '')}/v1/chat/completions`;
    this.#apiKey = options.apiKey;
    this.#silenceMs = options.silenceMs;
    this.#dispatcher = new Agent({
      connections: 512,
      pipelining: 1,
      keepAliveTimeout: 30_000,
      connect: { timeout: 10_000 },
    });
  }

  async stream(
    request: ModelRequest,
    options: { signal: AbortSignal; onText: (text: string) => void },
  ): Promise<ModelReply> {
    const { signal, onText } = options;
    try {
      return await this.#stream(request, signal, onText);
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

  async #stream(request: ModelRequest, signal: AbortSignal, onText: (text: string) => void): Promise<ModelReply> {
    const response = await httpRequest(this.#url, {
      method: 'POST',
      dispatcher: this.#dispatcher,
      signal,
      headersTimeout: this.#silenceMs,
      bodyTimeout: this.#silenceMs,
      headers: {
        'content-type': 'application/json',
        accept: 'text/event-stream',
        ...(this.#apiKey === '' ? {} : { authorization: `Bearer ${this.#apiKey}` }),
      },
      body: requestBody(request),
    });
    if (response.statusCode !== 200) {
      const body = await response.body.text();
      // LiteLLM hands on what its provider said under a name of its own, and gives its own rate limits that name too.
      const retryAfter = response.headers['retry-after'] ?? response.headers['llm_provider-retry-after'];
      throw failureOf(response.statusCode, body.slice(0, 65_536), headerText(retryAfter));
    }
    const answer = new Answer();
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
          const chunk = chunkSchema.parse(JSON.parse(data));
          if (chunk.error)
            throw failureOf(Number(chunk.error.code) || 500, JSON.stringify({ error: chunk.error }), undefined);
          answer.add(chunk, onText);
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
    // A stream that ends without a finish reason or [DONE] was cut; taking it as whole would store half an answer.
    if (!done && answer.finishReason === null) {
      throw new ModelFailure('The model gateway broke off in the middle of an answer.', {
        errorType: 'model_request_failed_error',
        retryable: true,
      });
    }
    const headerCost = Number(headerText(response.headers['x-litellm-response-cost']));
    return {
      text: answer.text,
      calls: answer.calls,
      usage: usageOf(answer.usage),
      costUsd: answer.usage?.cost ?? (Number.isFinite(headerCost) && headerCost > 0 ? headerCost : null),
      finishReason: answer.finishReason,
      gatewayCallId: headerText(response.headers['x-litellm-call-id']) ?? null,
    };
  }

  /** Closes the kept connections. */
  async close(): Promise<void> {
    await this.#dispatcher.close();
  }
}
