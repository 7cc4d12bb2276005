import { createHash, randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { nextStep, type Step } from './script.ts';

/**
 * The demo gateway: a scripted model behind the routes of a model gateway. It speaks `/v1/models`, `/v1/model/info`,
 * `/v1/chat/completions`, `/v1/messages` and `/v1/responses`, streaming and not, and never pretends to be a language model. In messages it
 * thinks where it is asked to, wants its thinking back as it signed it, and counts what a cache would have read.
 */
const MODEL = 'demo';
/** The same script as a model of Anthropic's. */
const THINKING_MODEL = 'demo-thinking';
const MAX_BODY = 64 * 1024 * 1024;

interface Message {
  readonly role: string;
  readonly content: unknown;
}

function textOf(content: unknown): string {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) return '';
  return content
    .map((part: { type?: string; text?: string }) => (part.type === 'text' ? (part.text ?? '') : ''))
    .join('');
}

/** One step of a conversation: gateways merge messages of the same role into one, so each part of one counts by itself. */
type Part = { readonly kind: 'prompt' | 'result' | 'answer'; readonly text: string };

function partsOf(message: Message): Part[] {
  if (message.role === 'assistant') return [{ kind: 'answer', text: '' }];
  if (message.role === 'tool') return [{ kind: 'result', text: textOf(message.content) }];
  if (message.role !== 'user') return [];
  if (!Array.isArray(message.content)) return [{ kind: 'prompt', text: textOf(message.content) }];
  const parts = (message.content as { type?: string; text?: string; content?: unknown }[]).flatMap((part): Part[] => {
    if (part.type === 'tool_result') return [{ kind: 'result', text: textOf(part.content) }];
    return part.type === 'text' ? [{ kind: 'prompt', text: part.text ?? '' }] : [];
  });
  return parts.length > 0 ? parts : [{ kind: 'prompt', text: '' }];
}

function stepFor(messages: readonly Message[]): Step {
  let prompt = '';
  let done = 0;
  let result: string | null = null;
  for (const { kind, text } of messages.flatMap(partsOf)) {
    if (kind === 'result') result = text;
    else if (kind === 'answer') done += 1;
    else [prompt, done, result] = [text, 0, null];
  }
  return nextStep(prompt, done, result);
}

/** The shell by the names that coding harnesses offer it under, and what its command is called there. */
const SHELLS = [
  ['bash', 'command'],
  ['Bash', 'command'],
  ['exec_command', 'cmd'],
] as const;

function asOffered(step: Step, tools: unknown): Step {
  const command = step.call?.name === 'bash' ? step.call.input['command'] : undefined;
  const offered = (Array.isArray(tools) ? (tools as { name?: string; function?: { name?: string } }[]) : []).map(
    (tool) => tool.function?.name ?? tool.name,
  );
  const shell = SHELLS.find(([name]) => offered.includes(name));
  if (command === undefined || shell === undefined) return step;
  return { ...step, call: { name: shell[0], input: { [shell[1]]: command } } };
}

interface Body {
  readonly model?: string;
  readonly messages?: Message[];
  /** Of a response, in place of messages. */
  readonly input?: unknown;
  readonly system?: unknown;
  readonly tools?: unknown;
  readonly thinking?: { readonly type?: string };
  readonly stream?: boolean;
  readonly stream_options?: { readonly include_usage?: boolean };
}

async function readJson(request: IncomingMessage): Promise<Body> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    size += part.length;
    if (size > MAX_BODY) throw new Error('the body is too large');
    parts.push(part);
  }
  return JSON.parse(Buffer.concat(parts).toString('utf8')) as object;
}

const tokens = (text: string): number => Math.ceil(text.length / 4);
const promptTokens = (messages: readonly Message[]): number =>
  messages.reduce((sum, message) => sum + tokens(JSON.stringify(message.content ?? '')) + 4, 0);

/** Text in pieces: word by word when it is slow, at once when it is not. */
async function* pieces(step: Step): AsyncGenerator<string> {
  if (step.text === '') return;
  if (step.wordMs === 0) {
    yield step.text;
    return;
  }
  for (const [i, word] of step.text.split(' ').entries()) {
    await sleep(step.wordMs);
    yield i === 0 ? word : ` ${word}`;
  }
}

function sendJson(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

async function chatCompletions(
  messages: Message[],
  stream: boolean,
  includeUsage: boolean,
  step: Step,
  response: ServerResponse,
): Promise<void> {
  const id = `chatcmpl-${randomUUID()}`;
  const created = Math.floor(Date.now() / 1000);
  const call =
    step.call === null
      ? null
      : {
          id: `call_${randomUUID()}`,
          type: 'function',
          function: { name: step.call.name, arguments: JSON.stringify(step.call.input) },
        };
  const finish = step.refusal !== null ? 'content_filter' : call === null ? 'stop' : 'tool_calls';
  const usage = {
    prompt_tokens: promptTokens(messages),
    completion_tokens: tokens(step.text) + (call === null ? 0 : 20),
    total_tokens: 0,
  };
  usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
  if (!stream) {
    for await (const _piece of pieces(step));
    const message = {
      role: 'assistant',
      content: step.text === '' ? null : step.text,
      ...(step.thinking === null ? {} : { reasoning_content: step.thinking }),
      ...(call === null ? {} : { tool_calls: [call] }),
    };
    sendJson(response, 200, {
      id,
      object: 'chat.completion',
      created,
      model: MODEL,
      choices: [{ index: 0, message, finish_reason: finish }],
      usage,
    });
    return;
  }
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' });
  const send = (choices: unknown[], extra: object = {}): void => {
    response.write(
      `data: ${JSON.stringify({ id, object: 'chat.completion.chunk', created, model: MODEL, choices, ...extra })}\n\n`,
    );
  };
  const delta = (content: object, finishReason: string | null = null): void =>
    send([{ index: 0, delta: content, finish_reason: finishReason }]);
  delta({ role: 'assistant', content: '' });
  if (step.thinking !== null) delta({ reasoning_content: step.thinking });
  for await (const piece of pieces(step)) {
    if (response.destroyed) return;
    delta({ content: piece });
  }
  if (call !== null) delta({ tool_calls: [{ index: 0, ...call }] });
  delta({}, finish);
  if (includeUsage) send([], { usage });
  response.end('data: [DONE]\n\n');
}

type Block = { readonly type?: string; readonly [field: string]: unknown };
const blocksOf = (content: unknown): readonly Block[] =>
  typeof content === 'string' ? [{ type: 'text', text: content }] : ((content ?? []) as readonly Block[]);

const digestOf = (text: string): string => createHash('sha256').update(text).digest('base64');
const signatureOf = (thinking: string): string => digestOf(`signed by the demo model: ${thinking}`);

/** What Anthropic's API refuses: thinking that is not the model's own, or that is missing where its calls are answered. */
function thinkingFault(body: Body): string | null {
  const messages = body.messages ?? [];
  for (const { content } of messages)
    for (const block of blocksOf(content))
      if (block.type === 'thinking' && block['signature'] !== signatureOf(String(block['thinking'])))
        return 'messages: thinking blocks cannot be modified, their signature is invalid';
  const at = messages.findLastIndex(({ role }) => role === 'assistant');
  const answered = blocksOf(messages[at + 1]?.content).some(({ type }) => type === 'tool_result');
  if (!thinks(body) || at === -1 || !answered || stepFor(messages.slice(0, at)).thinking === null) return null;
  return blocksOf(messages[at]?.content)[0]?.type === 'thinking'
    ? null
    : `messages.${at}.content.0: expected thinking before tool_use`;
}
const thinks = ({ thinking }: Body): boolean => thinking?.type === 'adaptive' || thinking?.type === 'enabled';

/** Prefixes that requests asked to be kept. */
const kept = new Set<string>();
const MAX_KEPT = 10_000;

/** The prompt's tokens as a provider with a cache bills them: a prefix that was kept before is read. */
function inputUsage(body: Body): {
  input_tokens: number;
  cache_creation_input_tokens: number;
  cache_read_input_tokens: number;
} {
  const blocks = [
    ...blocksOf(body.tools),
    ...blocksOf(body.system),
    ...(body.messages ?? []).flatMap(({ role, content }) => blocksOf(content).map((block) => ({ role, ...block }))),
  ];
  let [prefix, total, read, marked] = ['', 0, 0, 0];
  for (const { cache_control: mark, ...block } of blocks as readonly Block[]) {
    const text = JSON.stringify(block);
    prefix = digestOf(prefix + text);
    total += tokens(text);
    if (mark === undefined) continue;
    marked = total;
    if (kept.has(prefix)) read = total;
    else kept.add(prefix);
  }
  if (kept.size > MAX_KEPT) kept.clear();
  return {
    input_tokens: total - marked,
    cache_creation_input_tokens: marked - read,
    cache_read_input_tokens: read,
  };
}

async function anthropicMessages(body: Body, step: Step, response: ServerResponse): Promise<void> {
  const id = `msg_${randomUUID()}`;
  const call = step.call === null ? null : { type: 'tool_use', id: `toolu_${randomUUID()}`, ...step.call };
  const stopReason = step.refusal !== null ? 'refusal' : call === null ? 'end_turn' : 'tool_use';
  const stop = {
    stop_reason: stopReason,
    stop_sequence: null,
    ...(step.refusal === null
      ? {}
      : { stop_details: { type: 'refusal', category: 'general_harms', explanation: step.refusal } }),
  };
  const thinking = thinks(body) ? step.thinking : null;
  const usage = {
    ...inputUsage(body),
    output_tokens: tokens(step.text + (thinking ?? '')) + (call === null ? 0 : 20),
  };
  const base = { id, type: 'message', role: 'assistant', model: body.model ?? MODEL };
  if (body.stream !== true) {
    for await (const _piece of pieces(step));
    const content = [
      ...(thinking === null ? [] : [{ type: 'thinking', thinking, signature: signatureOf(thinking) }]),
      ...(step.text === '' ? [] : [{ type: 'text', text: step.text }]),
      ...(call === null ? [] : [call]),
    ];
    sendJson(response, 200, { ...base, content, ...stop, usage });
    return;
  }
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' });
  const send = (type: string, rest: object): void => {
    response.write(`event: ${type}\ndata: ${JSON.stringify({ type, ...rest })}\n\n`);
  };
  send('message_start', {
    message: { ...base, content: [], stop_reason: null, stop_sequence: null, usage: { ...usage, output_tokens: 0 } },
  });
  let index = 0;
  if (thinking !== null) {
    send('content_block_start', { index, content_block: { type: 'thinking', thinking: '', signature: '' } });
    for (const piece of thinking.match(/\S+\s*/g) ?? [])
      send('content_block_delta', { index, delta: { type: 'thinking_delta', thinking: piece } });
    send('content_block_delta', { index, delta: { type: 'signature_delta', signature: signatureOf(thinking) } });
    send('content_block_stop', { index });
    index += 1;
  }
  if (step.text !== '') {
    send('content_block_start', { index, content_block: { type: 'text', text: '' } });
    for await (const piece of pieces(step)) {
      if (response.destroyed) return;
      send('content_block_delta', { index, delta: { type: 'text_delta', text: piece } });
    }
    send('content_block_stop', { index });
    index += 1;
  }
  if (call !== null) {
    send('content_block_start', { index, content_block: { ...call, input: {} } });
    send('content_block_delta', {
      index,
      delta: { type: 'input_json_delta', partial_json: JSON.stringify(call.input) },
    });
    send('content_block_stop', { index });
  }
  send('message_delta', {
    delta: stop,
    usage: { output_tokens: usage.output_tokens },
  });
  send('message_stop', {});
  response.end();
}

interface Item {
  readonly type?: string;
  readonly role?: string;
  readonly content?: unknown;
  readonly output?: unknown;
}

/** The input of a response as messages: what the model said and called in one step is one of them. */
function messagesOf(input: unknown): Message[] {
  const items: readonly Item[] =
    typeof input === 'string' ? [{ role: 'user', content: input }] : Array.isArray(input) ? (input as Item[]) : [];
  const messages: Message[] = [];
  for (const { type = 'message', role = '', content, output } of items) {
    if (type === 'function_call_output') messages.push({ role: 'tool', content: partsAsText(output) });
    else if (type !== 'message' && type !== 'function_call') continue;
    else if (type === 'message' && role !== 'assistant') messages.push({ role, content: partsAsText(content) });
    else if (messages.at(-1)?.role !== 'assistant') messages.push({ role: 'assistant', content: '' });
  }
  return messages;
}

function partsAsText(content: unknown): unknown {
  return Array.isArray(content)
    ? (content as { text?: string }[]).map(({ text = '' }) => ({ type: 'text', text }))
    : content;
}

async function openAiResponses(
  body: Body,
  messages: readonly Message[],
  step: Step,
  response: ServerResponse,
): Promise<void> {
  const input = promptTokens(messages);
  const output = tokens(step.text) + (step.call === null ? 0 : 20);
  const base = { id: `resp_${randomUUID()}`, object: 'response', model: body.model ?? MODEL };
  const said = step.refusal === null ? { type: 'output_text', annotations: [] } : { type: 'refusal' };
  const message = { type: 'message', id: `msg_${randomUUID()}`, role: 'assistant', status: 'completed' };
  const items = [
    ...(step.text === '' && step.refusal === null
      ? []
      : [{ ...message, content: [{ ...said, text: step.text, refusal: step.refusal ?? undefined }] }]),
    ...(step.call === null
      ? []
      : [
          {
            ...{ type: 'function_call', id: `fc_${randomUUID()}`, call_id: `call_${randomUUID()}` },
            ...{ name: step.call.name, arguments: JSON.stringify(step.call.input), status: 'completed' },
          },
        ]),
  ];
  const whole = {
    ...base,
    status: 'completed',
    output: items,
    usage: { input_tokens: input, output_tokens: output, total_tokens: input + output },
  };
  if (body.stream !== true) {
    for await (const _piece of pieces(step));
    sendJson(response, 200, whole);
    return;
  }
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' });
  const send = (type: string, rest: object): void => {
    response.write(`event: ${type}\ndata: ${JSON.stringify({ type, ...rest })}\n\n`);
  };
  send('response.created', { response: { ...base, status: 'in_progress', output: [] } });
  for (const [output_index, item] of items.entries()) {
    const opened = item.type === 'message' ? { ...item, content: [] } : { ...item, arguments: '' };
    send('response.output_item.added', { output_index, item: { ...opened, status: 'in_progress' } });
    if (item.type === 'message')
      for await (const delta of pieces(step)) {
        if (response.destroyed) return;
        send('response.output_text.delta', { output_index, item_id: item.id, content_index: 0, delta });
      }
    send('response.output_item.done', { output_index, item });
  }
  send('response.completed', { response: whole });
  response.end();
}

/** Told of each model request as it arrives, before it is answered; for benches and specs. */
export type OnRequest = (messages: readonly Message[]) => void;

/** Starts the demo gateway; port 0 takes a free one. */
export async function startDemoGateway(
  port: number,
  host = '127.0.0.1',
  onRequest: OnRequest = () => undefined,
): Promise<Server> {
  const server = createServer((request, response) => {
    void answer(request, response, onRequest).catch((error: unknown) => {
      if (!response.headersSent)
        sendJson(response, 400, { error: { message: String(error), type: 'invalid_request_error' } });
      else response.destroy();
    });
  });
  server.keepAliveTimeout = 60_000;
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, resolve);
  });
  return server;
}

async function answer(request: IncomingMessage, response: ServerResponse, onRequest: OnRequest): Promise<void> {
  const { pathname } = new URL(request.url ?? '/', 'http://demo');
  if (request.method === 'GET' && (pathname === '/healthz' || pathname === '/health/liveliness'))
    return sendJson(response, 200, { status: 'ok' });
  if (request.method === 'GET' && pathname === '/v1/models') {
    return sendJson(response, 200, {
      object: 'list',
      data: [MODEL, THINKING_MODEL].map((id) => ({
        id,
        object: 'model',
        created: 1_700_000_000,
        owned_by: 'holdfast',
      })),
    });
  }
  if (request.method === 'GET' && pathname === '/v1/model/info') {
    const data = [MODEL, THINKING_MODEL].map((name) => ({
      model_name: name,
      litellm_params: { model: name === MODEL ? `openai/${name}` : `anthropic/${name}` },
      model_info: { supports_reasoning: name === THINKING_MODEL, supports_adaptive_thinking: name === THINKING_MODEL },
    }));
    return sendJson(response, 200, { data });
  }
  const dialect = pathname.replace(/^\/v1/, '');
  if (request.method !== 'POST' || !['/chat/completions', '/messages', '/responses'].includes(dialect)) {
    return sendJson(response, 404, {
      error: { message: `no route ${request.method} ${pathname}`, type: 'not_found_error' },
    });
  }
  const body = await readJson(request);
  const messages = dialect === '/responses' ? messagesOf(body.input) : (body.messages ?? []);
  onRequest(messages);
  const step = asOffered(stepFor(messages), body.tools);
  if (step.errorStatus !== null) {
    const error = { message: `the script asked for HTTP ${step.errorStatus}`, type: 'api_error' };
    return sendJson(response, step.errorStatus, dialect === '/messages' ? { type: 'error', error } : { error });
  }
  if (dialect === '/messages') {
    const fault = thinkingFault(body);
    if (fault === null) return anthropicMessages(body, step, response);
    return sendJson(response, 400, { type: 'error', error: { type: 'invalid_request_error', message: fault } });
  }
  if (dialect === '/responses') return openAiResponses(body, messages, step, response);
  return chatCompletions(messages, body.stream === true, body.stream_options?.include_usage === true, step, response);
}
