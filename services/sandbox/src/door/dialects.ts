import type { DoorUsage } from '@holdfast/contracts';

type Fields = Readonly<Record<string, unknown>>;

/** One way of speaking to a model, with what of it a sandbox may say (M1). */
export interface Dialect {
  readonly path: string;
  /** Top-level fields that are passed on; anything else in a body is left out. */
  readonly fields: ReadonlySet<string>;
  /** Types of tools that are passed on: those that the harness runs itself. Null: a tool that names no type. */
  readonly toolTypes: ReadonlySet<string | null>;
  /** Whether an answer is a model's step, whose usage counts. */
  readonly metered: boolean;
  readonly error: (status: number, message: string) => object;
  /** Takes in one object of an answer, streamed or whole. */
  readonly measure: (part: Fields, into: Measured) => void;
}

/** What was found in an answer so far. */
export interface Measured {
  usage: DoorUsage['usage'];
  costUsd: number | null;
  finishReason: string | null;
  /** The tools that it calls, each by what tells it from the others. */
  readonly tools: Set<string>;
  /** An error in the middle of a stream, after a status of 200. */
  failed: boolean;
  /** It said that it is whole. */
  ended: boolean;
}

const list = (value: unknown): Fields[] => (Array.isArray(value) ? (value as unknown[]).filter(isFields) : []);
const fields = (value: unknown): Fields => (isFields(value) ? value : {});
function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
const count = (value: unknown): number =>
  typeof value === 'number' && Number.isFinite(value) ? Math.max(0, Math.trunc(value)) : 0;
const openAiError = (status: number, message: string): object => ({
  error: { message, type: 'invalid_request_error', param: null, code: String(status) },
});

const COMMON = ['model', 'stream', 'temperature', 'top_p', 'tools', 'tool_choice', 'parallel_tool_calls', 'stop'];

/** OpenAI counts cached tokens inside the input, the wire contract beside it. */
function openAiUsage(usage: Fields, input: string, output: string): DoorUsage['usage'] {
  const details = fields(usage[`${input}_details`]);
  const read = count(details['cached_tokens']);
  const created = count(usage['cache_creation_input_tokens'] ?? details['cache_creation_tokens']);
  return {
    input_tokens: Math.max(0, count(usage[input]) - read - created),
    output_tokens: count(usage[output]),
    cache_creation_input_tokens: created,
    cache_read_input_tokens: read,
  };
}

function costOf(usage: Fields, into: Measured): void {
  if (typeof usage['cost'] === 'number' && usage['cost'] >= 0) into.costUsd = usage['cost'];
}

const chatCompletions: Dialect = {
  path: '/v1/chat/completions',
  fields: new Set([
    ...COMMON,
    ...['messages', 'stream_options', 'max_tokens', 'max_completion_tokens', 'reasoning_effort', 'response_format'],
    ...['seed', 'n', 'presence_penalty', 'frequency_penalty', 'logprobs', 'top_logprobs', 'verbosity'],
  ]),
  toolTypes: new Set(['function']),
  metered: true,
  error: openAiError,
  measure: (part, into) => {
    if (isFields(part['error'])) into.failed = true;
    if (isFields(part['usage'])) {
      into.usage = openAiUsage(part['usage'], 'prompt_tokens', 'completion_tokens');
      costOf(part['usage'], into);
    }
    for (const choice of list(part['choices'])) {
      if (typeof choice['finish_reason'] === 'string') {
        into.finishReason = choice['finish_reason'];
        into.ended = true;
      }
      // Pieces of one call have its index; some upstreams give every call the same and tell them apart by a new id.
      for (const call of list(fields(choice['delta'] ?? choice['message'])['tool_calls']))
        if (typeof call['id'] === 'string' && call['id'] !== '') into.tools.add(call['id']);
    }
  },
};

const messages: Dialect = {
  path: '/v1/messages',
  fields: new Set([
    ...['model', 'stream', 'temperature', 'top_p', 'top_k', 'tools', 'tool_choice', 'messages', 'system'],
    ...['max_tokens', 'stop_sequences', 'thinking', 'output_config', 'context_management'],
  ]),
  toolTypes: new Set([null, 'custom']),
  metered: true,
  error: (_status, message) => ({ type: 'error', error: { type: 'invalid_request_error', message } }),
  measure: (part, into) => {
    const usage = fields(part['usage'] ?? fields(part['message'])['usage']);
    // What a later event does not say, an earlier one has said.
    into.usage = {
      input_tokens: count(usage['input_tokens']) || into.usage.input_tokens,
      output_tokens: count(usage['output_tokens']) || into.usage.output_tokens,
      cache_creation_input_tokens:
        count(usage['cache_creation_input_tokens']) || into.usage.cache_creation_input_tokens,
      cache_read_input_tokens: count(usage['cache_read_input_tokens']) || into.usage.cache_read_input_tokens,
    };
    costOf(usage, into);
    const reason = part['stop_reason'] ?? fields(part['delta'])['stop_reason'];
    if (typeof reason === 'string') into.finishReason = reason;
    const blocks = part['type'] === 'content_block_start' ? [fields(part['content_block'])] : list(part['content']);
    for (const block of blocks) if (block['type'] === 'tool_use') into.tools.add(String(block['id']));
    if (part['type'] === 'error') into.failed = true;
    if (part['type'] === 'message_stop' || part['type'] === 'message') into.ended = true;
  },
};

const responses: Dialect = {
  path: '/v1/responses',
  fields: new Set([
    ...COMMON,
    ...['input', 'instructions', 'max_output_tokens', 'reasoning', 'text', 'include', 'prompt_cache_key', 'truncation'],
  ]),
  toolTypes: new Set(['function', 'custom', 'local_shell']),
  metered: true,
  error: openAiError,
  measure: (part, into) => {
    const whole = part['object'] === 'response' ? part : fields(part['response']);
    if (isFields(whole['usage'])) {
      into.usage = openAiUsage(whole['usage'], 'input_tokens', 'output_tokens');
      costOf(whole['usage'], into);
    }
    for (const item of list(whole['output']))
      if (String(item['type']).endsWith('_call')) into.tools.add(String(item['call_id'] ?? item['id']));
    const { status } = whole;
    if (status === 'completed' || status === 'incomplete') {
      into.ended = true;
      into.finishReason = status;
    }
    if (status === 'failed' || part['type'] === 'error') into.failed = true;
  },
};

const countTokens: Dialect = {
  path: '/v1/messages/count_tokens',
  fields: new Set(['model', 'messages', 'system', 'tools', 'tool_choice', 'thinking']),
  toolTypes: messages.toolTypes,
  metered: false,
  error: messages.error,
  measure: () => undefined,
};

export const DIALECTS: readonly Dialect[] = [chatCompletions, messages, responses, countTokens];

/** Where a message may name what the gateway or the provider would fetch. */
const LINKS = new Set(['image_url', 'video_url', 'file_url', 'url']);
const LINKED_IN = new Set(['image_url', 'video_url', 'source']);

/**
 * The field of a body's messages by which something would be fetched that is not in them, past whatever the sandbox's own
 * network may reach; null when there is none. What a tool was called with is text to a model, and not looked at.
 */
export function named(value: unknown, within = ''): string | null {
  if (Array.isArray(value)) return first(value, (one) => named(one, within));
  if (!isFields(value)) return null;
  if (value['type'] === 'item_reference') return 'item_reference';
  const call = value['type'] === 'tool_use';
  return first(Object.entries(value), ([name, inner]) => {
    if (name === 'file_id' && typeof inner === 'string') return name;
    const link = LINKS.has(name) && (name !== 'url' || LINKED_IN.has(within));
    if (link && typeof inner === 'string') return /^data:/i.test(inner) ? null : name;
    return (call && name === 'input') || name === 'tools' ? null : named(inner, name);
  });
}
function first<T>(values: readonly T[], look: (value: T) => string | null): string | null {
  for (const value of values) {
    const found = look(value);
    if (found !== null) return found;
  }
  return null;
}

/** A body with nothing in it that a sandbox may not say. */
export function allowed(dialect: Dialect, body: Fields): Record<string, unknown> {
  const kept = Object.fromEntries(Object.entries(body).filter(([name]) => dialect.fields.has(name)));
  if (kept['tools'] !== undefined) {
    const tools = list(kept['tools']).filter(({ type = null }) => dialect.toolTypes.has(type as string | null));
    if (tools.length > 0) kept['tools'] = tools;
    else Reflect.deleteProperty(kept, 'tools');
  }
  // Usage comes on a stream only where it is asked for.
  if (dialect === chatCompletions && kept['stream'] === true) kept['stream_options'] = { include_usage: true };
  // Nothing of a sandbox is to be kept where another one could ask for it.
  if (dialect === responses) kept['store'] = false;
  return kept;
}
