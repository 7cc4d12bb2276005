import { createServer, type IncomingHttpHeaders, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type { ConversationItem } from '../turn/conversation.ts';
import { chatCompletions } from './chat-completions.ts';
import { type Dialect, HttpModelGateway } from './gateway.ts';
import { messages } from './messages.ts';
import type { ModelReply, ModelRequest, ReplyPiece } from './model.port.ts';

/** A gateway that answers one request as the spec says. */
let answer: (response: ServerResponse) => void;
let asked = { path: '', headers: {} as IncomingHttpHeaders, body: {} as Record<string, never> };
let server: Server;
let baseUrl = '';
let speaks: Dialect = chatCompletions;
let gateway: HttpModelGateway;
beforeAll(async () => {
  server = createServer((request, response) => {
    let text = '';
    request.setEncoding('utf8').on('data', (piece: string) => (text += piece));
    request.on('end', () => {
      asked = {
        path: request.url ?? '',
        headers: request.headers,
        body: JSON.parse(text) as Record<string, never>,
      };
      answer(response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/`;
  const mannerOf = async () => ({ dialect: speaks, reasons: true });
  gateway = new HttpModelGateway({ baseUrl, apiKey: 'k', silenceMs: 5_000, mannerOf });
});
afterAll(async () => {
  await gateway.close();
  server.close();
});

const pieces: ReplyPiece[] = [];
const ask = (
  conversation: readonly ConversationItem[] = [],
  rest: Partial<ModelRequest> = {},
  signal = new AbortController().signal,
): Promise<ModelReply> => {
  pieces.length = 0;
  return gateway.stream(
    { model: 'm', system: null, conversation, tools: [], mayCall: true, effort: 'high', maxOutputTokens: 100, ...rest },
    { signal, onPiece: (piece) => pieces.push(piece) },
  );
};
function refuses(status: number, error: unknown, headers: Record<string, string> = {}): Promise<ModelReply> {
  answer = (response) => response.writeHead(status, headers).end(JSON.stringify({ error }));
  return ask();
}
function streams(events: readonly object[], end = ''): Promise<ModelReply> {
  answer = (response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    for (const event of events) response.write(`data: ${JSON.stringify(event)}\n\n`);
    response.end(end);
  };
  return ask();
}

/** What a dialect's stream says, in words that both have. */
type Word =
  | { readonly text: string }
  | { readonly thinks: readonly string[]; readonly signature: string }
  | { readonly redacted: string }
  | { readonly calls: string; readonly with: readonly string[] };
interface Whole {
  readonly words: readonly Word[];
  readonly stop: 'end' | 'calls' | 'refusal' | null;
  readonly usage?: { fresh: number; read: number; created: number; output: number; cost: number };
  /** An error in place of the end. */
  readonly error?: 'overloaded' | 'broken';
}

const delta = (content: object, finish: string | null = null) => ({
  choices: [{ delta: content, finish_reason: finish }],
});
function asChat({ words, stop, usage, error }: Whole): object[] {
  let calls = -1;
  const events = words.flatMap((word) => {
    if ('text' in word) return [delta({ content: word.text })];
    if ('thinks' in word)
      return [
        ...word.thinks.map((thinking) =>
          delta({ reasoning_content: thinking, thinking_blocks: [{ type: 'thinking', thinking, signature: null }] }),
        ),
        delta({ thinking_blocks: [{ type: 'thinking', thinking: '', signature: word.signature }] }),
      ];
    if ('redacted' in word) return [delta({ thinking_blocks: [{ type: 'redacted_thinking', data: word.redacted }] })];
    calls += 1;
    const call = (rest: object) => delta({ tool_calls: [{ index: calls, ...rest }] });
    return [
      call({ id: `c${calls}`, function: { name: word.calls, arguments: '' } }),
      ...word.with.map((piece) => call({ function: { arguments: piece } })),
    ];
  });
  const finish = { end: 'stop', calls: 'tool_calls', refusal: 'content_filter' };
  if (error !== undefined)
    return [...events, { error: { message: 'sorry', code: error === 'overloaded' ? '529' : '500' } }];
  if (stop === null) return events;
  return [
    ...events,
    delta({}, finish[stop]),
    ...(usage === undefined
      ? []
      : [
          {
            choices: [],
            usage: {
              prompt_tokens: usage.fresh + usage.read + usage.created,
              completion_tokens: usage.output,
              prompt_tokens_details: { cached_tokens: usage.read, cache_creation_tokens: usage.created },
              cost: usage.cost,
            },
          },
        ]),
  ];
}
function asMessages({ words, stop, usage, error }: Whole): object[] {
  const start = {
    type: 'message_start',
    message: {
      usage:
        usage === undefined
          ? { input_tokens: 1, output_tokens: 0 }
          : {
              input_tokens: usage.fresh,
              cache_read_input_tokens: usage.read,
              cache_creation_input_tokens: usage.created,
              output_tokens: 1,
            },
    },
  };
  const blocks = words.flatMap((word, index) => {
    const block = (content: object, ...deltas: object[]) => [
      { type: 'content_block_start', index, content_block: content },
      ...deltas.map((one) => ({ type: 'content_block_delta', index, delta: one })),
      { type: 'content_block_stop', index },
    ];
    if ('text' in word) return block({ type: 'text', text: '' }, { type: 'text_delta', text: word.text });
    if ('thinks' in word)
      return block(
        { type: 'thinking', thinking: '', signature: '' },
        ...word.thinks.map((thinking) => ({ type: 'thinking_delta', thinking })),
        { type: 'signature_delta', signature: word.signature },
      );
    if ('redacted' in word) return block({ type: 'redacted_thinking', data: word.redacted });
    return block(
      { type: 'tool_use', id: `toolu_${index}`, name: word.calls, input: {} },
      ...word.with.map((piece) => ({ type: 'input_json_delta', partial_json: piece })),
    );
  });
  const ping = { type: 'ping' };
  if (error !== undefined) {
    const type = error === 'overloaded' ? 'overloaded_error' : 'api_error';
    return [start, ping, ...blocks, { type: 'error', error: { type, message: 'sorry' } }];
  }
  if (stop === null) return [start, ping, ...blocks];
  const reason = { end: 'end_turn', calls: 'tool_use', refusal: 'refusal' };
  const end = {
    type: 'message_delta',
    delta: {
      stop_reason: reason[stop],
      ...(stop === 'refusal' ? { stop_details: { type: 'refusal', category: 'cyber', explanation: 'no' } } : {}),
    },
    usage: usage === undefined ? { output_tokens: 1 } : { output_tokens: usage.output, cost: usage.cost },
  };
  return [start, ping, ...blocks, end, { type: 'message_stop' }];
}

const signed = { type: 'thinking' as const, thinking: 'first this', signature: 'sig' };
const image = { type: 'image' as const, source: { type: 'base64' as const, media_type: 'image/png', data: 'AAAA' } };
const text = (words: string) => ({ type: 'text' as const, text: words });
const call = (id: string) => ({ id, name: 'look', input: { at: id } });
const TOOLS = ['look', 'bash'].map((name) => ({ name, description: `to ${name}`, inputSchema: { type: 'object' } }));
const report = {
  type: 'document' as const,
  source: { type: 'text' as const, media_type: 'text/plain' as const, data: 'body' },
  title: 'Report',
  context: 'from 2025',
};
const CONVERSATION: readonly ConversationItem[] = [
  { role: 'user', content: [report, image] },
  { role: 'assistant', model: 'm', content: [signed, text('I look')], calls: [call('a'), call('b')] },
  { role: 'tool', callId: 'a', content: [text('seen'), image], isError: false },
  { role: 'tool', callId: 'b', content: [text('broken')], isError: true },
  { role: 'system', text: 'be brief' },
];
const ok = (response: ServerResponse): void => {
  response.writeHead(200, { 'content-type': 'text/event-stream' }).end('data: [DONE]\n\n');
};

describe.each([
  ['/v1/chat/completions', chatCompletions, asChat],
  ['/v1/messages', messages, asMessages],
] as const)('a model gateway in %s', (path, dialect, stream) => {
  beforeAll(() => {
    speaks = dialect;
  });

  it('is asked at its route, with the key, the model, the bound and everything that was said', async () => {
    answer = ok;
    await ask(CONVERSATION, { system: 'you help', tools: TOOLS });
    expect(asked.path).toBe(path);
    expect(asked.headers.authorization).toBe('Bearer k');
    expect(asked.body).toMatchObject({ model: 'm', max_tokens: 100, stream: true });
    const sent = JSON.stringify(asked.body);
    for (const part of ['you help', 'from 2025', 'body', 'AAAA', 'I look', 'seen', 'broken', 'be brief', 'to bash'])
      expect(sent).toContain(part);
  });

  it('gets a model’s own thinking back with its signature, and no other model’s', async () => {
    answer = ok;
    await ask(CONVERSATION);
    expect(JSON.stringify(asked.body)).toContain(JSON.stringify(signed));
    await ask(CONVERSATION, { model: 'another' });
    expect(JSON.stringify(asked.body)).not.toContain('first this');
    const unsigned: ConversationItem[] = [
      { role: 'user', content: [text('go')] },
      { role: 'assistant', model: 'm', content: [{ ...signed, signature: null }, text('so')], calls: [] },
    ];
    await ask(unsigned);
    expect(JSON.stringify(asked.body)).not.toContain('first this');
  });

  it('says text as it came, and calls, several at once, put together', async () => {
    const reply = await streams(
      stream({
        words: [
          { text: 'Hel' },
          { text: 'lo' },
          { calls: 'bash', with: ['{"command":', '"ls"}'] },
          { calls: 'read', with: ['no JSON'] },
          { calls: 'now', with: [] },
        ],
        stop: 'calls',
      }),
    );
    expect(pieces).toEqual([
      { part: 0, type: 'text', text: 'Hel' },
      { part: 0, type: 'text', text: 'lo' },
    ]);
    expect(reply.content).toEqual([text('Hello')]);
    expect(reply.calls).toEqual([
      { name: 'bash', input: { command: 'ls' }, rawInput: '{"command":"ls"}' },
      { name: 'read', input: null, rawInput: 'no JSON' },
      { name: 'now', input: {}, rawInput: expect.any(String) },
    ]);
    expect(reply.refusal).toBeNull();
  });

  it('thinks in parts of their own, each block with its signature, in the order of the answer', async () => {
    const reply = await streams(
      stream({
        words: [
          { thinks: ['first ', 'this'], signature: 'one' },
          { redacted: 'secret' },
          { text: 'So' },
          { thinks: ['then'], signature: 'two' },
          { calls: 'bash', with: ['{}'] },
        ],
        stop: 'calls',
      }),
    );
    expect(reply.content).toEqual([
      {
        type: 'thinking',
        blocks: [
          { type: 'thinking', thinking: 'first this', signature: 'one' },
          { type: 'redacted_thinking', data: 'secret' },
        ],
      },
      text('So'),
      { type: 'thinking', blocks: [{ type: 'thinking', thinking: 'then', signature: 'two' }] },
    ]);
    const heard = (part: number) => pieces.filter((piece) => piece.part === part);
    expect(
      [0, 1, 2].map((part) =>
        heard(part)
          .map((piece) => piece.text)
          .join(''),
      ),
    ).toEqual(['first this', 'So', 'then']);
    expect([0, 1, 2].map((part) => heard(part)[0]?.type)).toEqual(['thinking', 'text', 'thinking']);
  });

  it('tells the tokens, of the cache apart from the others, and the cost', async () => {
    const usage = { fresh: 30, read: 60, created: 10, output: 9, cost: 0.5 };
    const reply = await streams(stream({ words: [{ text: 'x' }], stop: 'end', usage }));
    expect(reply).toMatchObject({
      usage: { input_tokens: 30, output_tokens: 9, cache_read_input_tokens: 60, cache_creation_input_tokens: 10 },
      costUsd: 0.5,
      finishReason: path === '/v1/messages' ? 'end_turn' : 'stop',
    });
  });

  it('tells a refusal, with what was said before it', async () => {
    const reply = await streams(stream({ words: [{ text: 'I' }], stop: 'refusal' }));
    const why =
      path === '/v1/messages' ? { category: 'cyber', explanation: 'no' } : { category: null, explanation: null };
    expect(reply).toMatchObject({ content: [text('I')], refusal: why });
  });

  it('that is cut or ends with an error gives no answer, and is asked again', async () => {
    const half = { words: [{ text: 'half' }], stop: null };
    await expect(streams(stream(half))).rejects.toMatchObject({ retryable: true });
    await expect(streams(stream({ ...half, error: 'broken' }))).rejects.toMatchObject({
      retryable: true,
      errorType: 'model_request_failed_error',
      message: expect.stringContaining('sorry'),
    });
    await expect(streams(stream({ ...half, error: 'overloaded' }))).rejects.toMatchObject({
      retryable: true,
      errorType: 'model_overloaded_error',
    });
    answer = (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(`data: ${JSON.stringify(stream(half)[0])}\n\n`, () => response.destroy());
    };
    await expect(ask()).rejects.toMatchObject({ retryable: true, errorType: 'model_request_failed_error' });
  });

  it('is hung up on when the caller gives up, with the caller’s reason', async () => {
    const gone = new AbortController();
    const hungUp = new Promise<void>((resolve) => {
      answer = (response) => {
        response.on('close', resolve);
        response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders();
        gone.abort(new Error('enough'));
      };
    });
    await expect(ask([], {}, gone.signal)).rejects.toThrow('enough');
    await hungUp;
  });

  it.each([
    [400, 'model_request_failed_error', false],
    [401, 'model_request_failed_error', false],
    [402, 'billing_error', false],
    [429, 'model_rate_limited_error', true],
    [500, 'model_request_failed_error', true],
    [503, 'model_overloaded_error', true],
    [529, 'model_overloaded_error', true],
  ] as const)('refusing with %i is a %s; retried: %s', async (status, errorType, retryable) => {
    const failure = { errorType, retryable, message: expect.stringContaining('why') };
    await expect(refuses(status, { message: 'why' })).rejects.toMatchObject(failure);
    await expect(refuses(status, 'why')).rejects.toMatchObject(failure);
  });

  it('refusing for a budget of LiteLLM’s is a billing_error, whatever its status, and is not tried again', async () => {
    const error = { message: 'Budget has been exceeded!', type: 'budget_exceeded', param: null, code: '422' };
    for (const status of [400, 422, 429])
      await expect(refuses(status, error)).rejects.toMatchObject({ errorType: 'billing_error', retryable: false });
  });

  it('may say how long to wait: itself, or through LiteLLM its provider', async () => {
    const error = { message: 'slow down' };
    await expect(refuses(429, error)).rejects.toMatchObject({ retryAfterMs: null });
    await expect(refuses(429, error, { 'retry-after': '7' })).rejects.toMatchObject({ retryAfterMs: 7_000 });
    await expect(refuses(429, error, { 'llm_provider-retry-after': '3' })).rejects.toMatchObject({
      retryAfterMs: 3_000,
    });
    const both = { 'retry-after': '7', 'llm_provider-retry-after': '3' };
    await expect(refuses(503, error, both)).rejects.toMatchObject({ retryAfterMs: 7_000 });
    await expect(refuses(429, error, { 'retry-after': '86400' })).rejects.toMatchObject({ retryAfterMs: 60_000 });
  });

  it('tells when the conversation is too long for the model', async () => {
    const message = "litellm.ContextWindowExceededError: This model's maximum context length is 100 tokens.";
    await expect(refuses(400, { message })).rejects.toMatchObject({ contextExceeded: true });
    await expect(refuses(400, { message: 'prompt is too long: 9 tokens' })).rejects.toMatchObject({
      contextExceeded: true,
    });
    await expect(refuses(400, { message: 'no such parameter' })).rejects.toMatchObject({ contextExceeded: false });
  });
});

describe('a request for chat completions', () => {
  beforeAll(() => {
    speaks = chatCompletions;
    answer = ok;
  });

  it('holds everything of the conversation: also a document’s context, and what a result has beside text', async () => {
    await ask(CONVERSATION);
    const imagePart = { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } };
    expect(asked.body['messages']).toMatchObject([
      { role: 'user', content: [{ text: 'from 2025' }, { text: 'Report\n\nbody' }, imagePart] },
      { role: 'assistant', content: 'I look', tool_calls: [{ id: 'a' }, { id: 'b' }], thinking_blocks: [signed] },
      { role: 'tool', tool_call_id: 'a', content: 'seen' },
      { role: 'tool', tool_call_id: 'b', content: 'Error: broken' },
      { role: 'user', content: [{ text: 'Part of the result of a:' }, imagePart] },
      { role: 'system', content: 'be brief' },
    ]);
  });

  it('forbids calls where the model may not make any, and names the effort where it is not the usual one', async () => {
    await ask(CONVERSATION, { tools: TOOLS, mayCall: false, effort: 'low' });
    expect(asked.body).toMatchObject({ tool_choice: 'none', reasoning_effort: 'low' });
    await ask(CONVERSATION, { tools: TOOLS });
    expect(asked.body).not.toHaveProperty('tool_choice');
    expect(asked.body).not.toHaveProperty('reasoning_effort');
  });
});

describe('a request for messages', () => {
  const KEEP = { cache_control: { type: 'ephemeral' } };
  beforeAll(() => {
    speaks = messages;
    answer = ok;
  });

  it('alternates between user and assistant, results first, and is kept after tools, system and conversation', async () => {
    await ask(CONVERSATION, { system: 'you help', tools: TOOLS });
    const tool = (name: string) => ({ name, description: `to ${name}`, input_schema: { type: 'object' } });
    expect(asked.body).toEqual({
      model: 'm',
      max_tokens: 100,
      stream: true,
      system: [{ ...text('you help'), ...KEEP }],
      tools: [tool('look'), { ...tool('bash'), ...KEEP }],
      thinking: { type: 'adaptive', display: 'summarized' },
      messages: [
        { role: 'user', content: [report, { ...image, ...KEEP }] },
        {
          role: 'assistant',
          content: [
            signed,
            text('I look'),
            { type: 'tool_use', id: 'a', name: 'look', input: { at: 'a' } },
            { type: 'tool_use', id: 'b', name: 'look', input: { at: 'b' } },
          ],
        },
        {
          role: 'user',
          content: [
            { type: 'tool_result', tool_use_id: 'a', content: [text('seen'), image] },
            { type: 'tool_result', tool_use_id: 'b', content: [text('broken')], is_error: true },
            { ...text('[Instructions of the operator]\nbe brief'), ...KEEP },
          ],
        },
      ],
    });
  });

  it('leaves out what the API refuses: empty text, an answer of thinking alone, a beginning that is not the user’s', async () => {
    await ask([
      { role: 'assistant', model: 'm', content: [text('before')], calls: [] },
      { role: 'user', content: [text('a'), text(' \n')] },
      { role: 'assistant', model: 'm', content: [signed], calls: [] },
      { role: 'user', content: [text('b')] },
    ]);
    expect(asked.body['messages']).toMatchObject([
      { role: 'user', content: [{ type: 'text' }] },
      { role: 'assistant', content: [text('before')] },
      { role: 'user', content: [text('a'), { ...text('b'), ...KEEP }] },
    ]);
  });

  it('forbids calls where the model may not make any, and names the effort where it is not the usual one', async () => {
    await ask(CONVERSATION, { tools: TOOLS, mayCall: false, effort: 'low' });
    expect(asked.body).toMatchObject({ tool_choice: { type: 'none' }, output_config: { effort: 'low' } });
  });
});

it('a call whose arguments come with its beginning is that call', async () => {
  speaks = messages;
  const reply = await streams([
    { type: 'content_block_start', index: 0, content_block: { type: 'tool_use', name: 'bash', input: { a: 1 } } },
    { type: 'content_block_stop', index: 0 },
    { type: 'message_delta', delta: { stop_reason: 'tool_use' } },
  ]);
  expect(reply.calls).toMatchObject([{ name: 'bash', input: { a: 1 } }]);
});
