import type { ModelUsage, Refusal, StoredBlock } from '@holdfast/contracts';
import { z } from 'zod';
import { type ConversationItem, isSigned } from '../turn/conversation.ts';
import { type Dialect, type DialectAnswer, failureOf, type Said } from './gateway.ts';
import type { ModelRequest } from './model.port.ts';

type Block = Record<string, unknown>;
interface Message {
  readonly role: 'user' | 'assistant';
  readonly content: Block[];
}

/** A prefix up to a block that carries this is kept by the provider for five minutes. */
const KEEP = { cache_control: { type: 'ephemeral' } };

const textBlock = (words: string): Block => ({ type: 'text', text: words });

/** Blocks of the log are the dialect's own, but for what its API refuses: empty text, and members that are null. */
function blocksOf(blocks: readonly StoredBlock[]): Block[] {
  return blocks.flatMap((block): Block[] => {
    if (block.type === 'text') return block.text.trim() === '' ? [] : [textBlock(block.text)];
    if (block.type === 'x_blob') return [textBlock('[content that cannot be shown]')];
    if (block.type === 'image') return [{ type: 'image', source: block.source }];
    const { title, context, source } = block;
    return [
      {
        type: 'document',
        source,
        ...(title == null || title === '' ? {} : { title }),
        ...(context == null || context === '' ? {} : { context }),
      },
    ];
  });
}

/** Everything between two answers of the model is one message of the user, and the results of its calls come first. */
function messagesOf(items: readonly ConversationItem[], model: string): Message[] {
  const messages: Message[] = [];
  let results: Block[] = [];
  let rest: Block[] = [];
  const flush = (): void => {
    if (results.length + rest.length > 0) messages.push({ role: 'user', content: [...results, ...rest] });
    [results, rest] = [[], []];
  };
  for (const item of items) {
    if (item.role === 'user') rest.push(...blocksOf(item.content));
    // Only some models take a system message in the middle, all take the operator's words from the user.
    else if (item.role === 'system') rest.push(textBlock(`[Instructions of the operator]\n${item.text}`));
    else if (item.role === 'tool')
      results.push({
        type: 'tool_result',
        tool_use_id: item.callId,
        content: blocksOf(item.content),
        ...(item.isError ? { is_error: true } : {}),
      });
    else {
      const content = assistantBlocks(item, model);
      // An answer that was nothing but thinking is none.
      if (content.every(({ type }) => type !== 'text' && type !== 'tool_use')) continue;
      flush();
      messages.push({ role: 'assistant', content });
    }
  }
  flush();
  if (messages[0]?.role === 'assistant')
    messages.unshift({ role: 'user', content: [textBlock('[The beginning of the conversation was left out.]')] });
  return messages;
}

function assistantBlocks(item: Extract<ConversationItem, { role: 'assistant' }>, model: string): Block[] {
  const content = item.content.flatMap((block): Block[] => {
    if (block.type === 'text') return block.text.trim() === '' ? [] : [textBlock(block.text)];
    return isSigned(block) && item.model === model ? [{ ...block }] : [];
  });
  return [...content, ...item.calls.map(({ id, name, input }) => ({ type: 'tool_use', id, name, input }))];
}

/** Marks the newest message, and the one that the request before ended with, so that either can be read from the cache. */
function keepMessages(messages: readonly Message[]): void {
  const last = messages.findLastIndex(({ role }) => role === 'user');
  const before = messages.slice(0, Math.max(0, last)).findLastIndex(({ role }) => role === 'user');
  for (const at of [last, before]) {
    const block = messages[at]?.content.at(-1);
    if (block !== undefined) Object.assign(block, KEEP);
  }
}

function requestBody(request: ModelRequest, reasons: boolean): object {
  const messages = messagesOf(request.conversation, request.model);
  keepMessages(messages);
  const { system, tools } = request;
  return {
    model: request.model,
    max_tokens: request.maxOutputTokens,
    stream: true,
    ...(system === null || system.trim() === '' ? {} : { system: [{ ...textBlock(system), ...KEEP }] }),
    messages,
    ...(tools.length === 0
      ? {}
      : {
          tools: tools.map(({ name, description, inputSchema }, at) => ({
            name,
            description,
            input_schema: inputSchema,
            ...(at === tools.length - 1 ? KEEP : {}),
          })),
          ...(request.mayCall ? {} : { tool_choice: { type: 'none' } }),
        }),
    ...(reasons
      ? {
          thinking: { type: 'adaptive', display: 'summarized' },
          ...(request.effort === 'high' ? {} : { output_config: { effort: request.effort } }),
        }
      : {}),
  };
}

const count = z.number().nullish();
const usageSchema = z.object({
  input_tokens: count,
  output_tokens: count,
  cache_creation_input_tokens: count,
  cache_read_input_tokens: count,
  /** LiteLLM's, where it is told to. */
  cost: count,
});
const text = z.string().nullish();
const index = z.number().int().min(0).max(10_000);
const eventSchema = z.object({
  type: z.string(),
  index: index.nullish(),
  message: z.object({ usage: usageSchema.nullish() }).nullish(),
  content_block: z
    .object({
      type: z.string(),
      name: text,
      text,
      thinking: text,
      signature: text,
      data: text,
      input: z.unknown().optional(),
    })
    .nullish(),
  delta: z
    .object({
      type: text,
      text,
      thinking: text,
      signature: text,
      partial_json: text,
      stop_reason: text,
      stop_details: z.object({ category: text, explanation: text }).nullish(),
    })
    .nullish(),
  usage: usageSchema.nullish(),
  error: z.object({ type: text, message: text }).nullish(),
});
type Event = z.infer<typeof eventSchema>;

/** The status that an error of the stream would have had as the whole answer. */
const STATUS_OF: Readonly<Record<string, number>> = {
  invalid_request_error: 400,
  authentication_error: 401,
  billing_error: 402,
  permission_error: 403,
  not_found_error: 404,
  request_too_large: 413,
  rate_limit_error: 429,
  api_error: 500,
  timeout_error: 504,
  overloaded_error: 529,
};

/** Reads the gateway's answer as it streams in. */
class MessagesAnswer implements DialectAnswer {
  readonly #said: Said;
  readonly #calls = new Map<number, { call: { name: string; raw: string }; whole: string }>();
  #usage: z.infer<typeof usageSchema> = {};
  #stopReason: string | null = null;
  #refusal: Refusal | null = null;
  #stopped = false;

  constructor(said: Said) {
    this.#said = said;
  }

  get isWhole(): boolean {
    return this.#stopped || this.#stopReason !== null;
  }

  get outcome(): DialectAnswer['outcome'] {
    const whole = (value: number | null | undefined): number => Math.max(0, Math.trunc(value ?? 0));
    const usage: ModelUsage = {
      input_tokens: whole(this.#usage.input_tokens),
      output_tokens: whole(this.#usage.output_tokens),
      cache_creation_input_tokens: whole(this.#usage.cache_creation_input_tokens),
      cache_read_input_tokens: whole(this.#usage.cache_read_input_tokens),
    };
    return {
      usage,
      costUsd: this.#usage.cost ?? null,
      finishReason: this.#stopReason,
      refusal: this.#stopReason === 'refusal' ? (this.#refusal ?? { category: null, explanation: null }) : null,
    };
  }

  add(data: unknown): void {
    const event = eventSchema.parse(data);
    switch (event.type) {
      case 'message_start':
        this.#addUsage(event.message?.usage);
        return;
      case 'content_block_start':
        this.#start(event);
        return;
      case 'content_block_delta':
        this.#grow(event);
        return;
      case 'content_block_stop': {
        const open = this.#calls.get(event.index ?? -1);
        // Some upstreams give the arguments with the beginning of the call and nothing after it.
        if (open !== undefined && open.call.raw === '') this.#said.argumentsOf(open.call, open.whole);
        return;
      }
      case 'message_delta':
        this.#addUsage(event.usage);
        this.#stopReason = event.delta?.stop_reason ?? this.#stopReason;
        if (event.delta?.stop_details)
          this.#refusal = {
            category: event.delta.stop_details.category ?? null,
            explanation: event.delta.stop_details.explanation ?? null,
          };
        return;
      case 'message_stop':
        this.#stopped = true;
        return;
      case 'error':
        throw failureOf(
          STATUS_OF[event.error?.type ?? ''] ?? 500,
          JSON.stringify({ error: event.error ?? {} }),
          undefined,
        );
      default:
        return;
    }
  }

  #start({ index: at, content_block: block }: Event): void {
    switch (block?.type) {
      case 'text':
        this.#said.text(block.text ?? '');
        return;
      case 'thinking':
        this.#said.thinking(block.thinking ?? '');
        if (block.signature) this.#said.signature(block.signature);
        return;
      case 'redacted_thinking':
        this.#said.redactedThinking(block.data ?? '');
        return;
      case 'tool_use':
        this.#calls.set(at ?? -1, {
          call: this.#said.call(block.name ?? ''),
          whole: JSON.stringify(block.input ?? {}),
        });
        return;
      default:
        return;
    }
  }

  #grow({ index: at, delta }: Event): void {
    switch (delta?.type) {
      case 'text_delta':
        this.#said.text(delta.text ?? '');
        return;
      case 'thinking_delta':
        this.#said.thinking(delta.thinking ?? '');
        return;
      case 'signature_delta':
        this.#said.signature(delta.signature ?? '');
        return;
      case 'input_json_delta': {
        const open = this.#calls.get(at ?? -1);
        if (open !== undefined) this.#said.argumentsOf(open.call, delta.partial_json ?? '');
        return;
      }
      default:
        return;
    }
  }

  /** The end's counts replace the beginning's where it gives them. */
  #addUsage(usage: z.infer<typeof usageSchema> | null | undefined): void {
    const given = Object.entries(usage ?? {}).filter(([, value]) => typeof value === 'number');
    this.#usage = { ...this.#usage, ...Object.fromEntries(given) };
  }
}

/**
 * The Anthropic dialect, `POST /v1/messages` with streaming: thinking with its signatures, and cache breakpoints after
 * the tools, the system prompt and the conversation so far.
 */
export const messages: Dialect = {
  path: '/messages',
  headers: { 'anthropic-version': '2023-06-01' },
  body: requestBody,
  answer: (parts) => new MessagesAnswer(parts),
};
