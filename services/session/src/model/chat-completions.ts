import type { ModelUsage, StoredBlock } from '@holdfast/contracts';
import { z } from 'zod';
import { type ConversationItem, isSigned } from '../turn/conversation.ts';
import { type Dialect, type DialectAnswer, failureOf, parseArguments, type Said } from './gateway.ts';
import type { ModelRequest } from './model.port.ts';

const thinkingDelta = z.union([
  z.object({ type: z.literal('redacted_thinking'), data: z.string() }),
  z.object({ type: z.literal('thinking'), thinking: z.string().nullish(), signature: z.string().nullish() }),
]);
const chunkSchema = z.object({
  error: z.object({ message: z.string().optional(), code: z.union([z.string(), z.number()]).nullish() }).nullish(),
  choices: z
    .array(
      z.object({
        delta: z
          .object({
            content: z.string().nullish(),
            refusal: z.string().nullish(),
            reasoning_content: z.string().nullish(),
            /** LiteLLM's: the thinking of an Anthropic-style upstream again, with its signatures. */
            thinking_blocks: z.array(thinkingDelta).nullish(),
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

interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | 'tool';
  content: unknown;
  tool_calls?: { id: string; type: 'function'; function: { name: string; arguments: string } }[];
  tool_call_id?: string;
  thinking_blocks?: object[];
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

function chatMessage(item: ConversationItem, model: string): ChatMessage {
  switch (item.role) {
    case 'system':
      return { role: 'system', content: item.text };
    case 'user':
      return item.content.every((block) => block.type === 'text')
        ? { role: 'user', content: plainText(item.content) }
        : { role: 'user', content: item.content.flatMap(partsOf) };
    case 'assistant': {
      const text = item.content.map((block) => (block.type === 'text' ? block.text : '')).join('');
      const message: ChatMessage = { role: 'assistant', content: text === '' && item.calls.length > 0 ? null : text };
      const thinking = item.model === model ? item.content.filter(isSigned) : [];
      if (thinking.length > 0) message.thinking_blocks = thinking;
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
function chatMessages(items: readonly ConversationItem[], model: string): ChatMessage[] {
  const messages: ChatMessage[] = [];
  let attached: object[] = [];
  for (const item of items) {
    if (item.role !== 'tool' && attached.length > 0) {
      messages.push({ role: 'user', content: attached });
      attached = [];
    }
    messages.push(chatMessage(item, model));
    if (item.role !== 'tool') continue;
    const more = item.content.filter((block) => block.type !== 'text');
    if (more.length > 0) attached.push(textPart(`Part of the result of ${item.callId}:`), ...more.flatMap(partsOf));
  }
  if (attached.length > 0) messages.push({ role: 'user', content: attached });
  return messages;
}

function requestBody(request: ModelRequest): object {
  const messages: ChatMessage[] =
    request.system === null || request.system === '' ? [] : [{ role: 'system', content: request.system }];
  messages.push(...chatMessages(request.conversation, request.model));
  return {
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
          ...(request.mayCall ? {} : { tool_choice: 'none' }),
        }),
  };
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

/** Reads the gateway's answer as it streams in. */
class ChatAnswer implements DialectAnswer {
  readonly #said: Said;
  readonly #byIndex = new Map<number, { name: string; raw: string }>();
  #finishReason: string | null = null;
  #usage: Chunk['usage'] = null;
  #refused = false;
  #explanation = '';

  constructor(said: Said) {
    this.#said = said;
  }

  get isWhole(): boolean {
    return this.#finishReason !== null;
  }

  get outcome(): DialectAnswer['outcome'] {
    return {
      usage: usageOf(this.#usage),
      costUsd: this.#usage?.cost ?? null,
      finishReason: this.#finishReason,
      refusal:
        this.#refused || this.#finishReason === 'content_filter'
          ? { category: null, explanation: this.#explanation || null }
          : null,
    };
  }

  add(data: unknown): void {
    const chunk = chunkSchema.parse(data);
    if (chunk.error)
      throw failureOf(Number(chunk.error.code) || 500, JSON.stringify({ error: chunk.error }), undefined);
    if (chunk.usage) this.#usage = chunk.usage;
    for (const { delta, finish_reason: finishReason } of chunk.choices ?? []) {
      if (finishReason) this.#finishReason = finishReason;
      if (!delta) continue;
      if (delta.refusal) {
        this.#refused = true;
        this.#explanation += delta.refusal;
      }
      this.#addThinking(delta.reasoning_content ?? '', delta.thinking_blocks ?? []);
      this.#said.text(delta.content ?? '');
      for (const part of delta.tool_calls ?? []) this.#addCall(part.index ?? 0, part.id ?? '', part.function ?? {});
    }
  }

  #addThinking(reasoning: string, blocks: readonly z.infer<typeof thinkingDelta>[]): void {
    if (reasoning !== '') this.#said.thinking(reasoning);
    for (const block of blocks) {
      if (block.type === 'redacted_thinking') this.#said.redactedThinking(block.data);
      else {
        if (reasoning === '' && block.thinking) this.#said.thinking(block.thinking);
        if (block.signature) this.#said.signature(block.signature);
      }
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
      call = this.#said.call('');
      this.#byIndex.set(index, call);
    }
    if (part.name && call.name === '') call.name = part.name;
    this.#said.argumentsOf(call, part.arguments ?? '');
  }
}

/**
 * LiteLLM's own dialect, `POST /v1/chat/completions` with streaming. It keeps tool arguments for OpenAI-style and
 * Anthropic-style upstreams alike (`/v1/messages` over an OpenAI-style upstream lost them in LiteLLM 1.106).
 */
export const chatCompletions: Dialect = {
  path: '/chat/completions',
  headers: {},
  body: requestBody,
  answer: (said) => new ChatAnswer(said),
};
