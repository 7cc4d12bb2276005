import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { ChatCompletionsGateway } from './chat-completions.ts';
import type { ModelReply, ModelRequest } from './model.port.ts';

/** A gateway that answers one request as the spec says. */
let answer: (response: ServerResponse) => void;
let asked = '';
let server: Server;
let gateway: ChatCompletionsGateway;
beforeAll(async () => {
  server = createServer((request, response) => {
    asked = '';
    request.setEncoding('utf8').on('data', (text: string) => (asked += text));
    request.on('end', () => answer(response));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/`;
  gateway = new ChatCompletionsGateway({ baseUrl, apiKey: 'k', silenceMs: 5_000 });
});
afterAll(async () => {
  await gateway.close();
  server.close();
});

const said: string[] = [];
const ask = (conversation: ModelRequest['conversation'] = []): Promise<ModelReply> => {
  said.length = 0;
  return gateway.stream(
    { model: 'm', system: null, conversation, tools: [], effort: 'high', maxOutputTokens: 100 },
    { signal: new AbortController().signal, onText: (text) => said.push(text) },
  );
};
function refuses(status: number, error: unknown, headers: Record<string, string> = {}): Promise<ModelReply> {
  answer = (response) => response.writeHead(status, headers).end(JSON.stringify({ error }));
  return ask();
}
function streams(chunks: readonly object[], end = 'data: [DONE]\n\n'): Promise<ModelReply> {
  answer = (response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    for (const chunk of chunks) response.write(`data: ${JSON.stringify(chunk)}\n\n`);
    response.end(end);
  };
  return ask();
}
const delta = (content: object, finish: string | null = null) => ({
  choices: [{ delta: content, finish_reason: finish }],
});

describe('a request to the gateway', () => {
  const image = { type: 'image' as const, source: { type: 'base64' as const, media_type: 'image/png', data: 'AAAA' } };
  const imagePart = { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } };

  it('holds everything of the conversation: also a document’s context, and what a result has beside text', async () => {
    answer = (response) => response.writeHead(200, { 'content-type': 'text/event-stream' }).end('data: [DONE]\n\n');
    const call = (id: string) => ({ id, name: 'look', input: {} });
    const document = {
      type: 'document' as const,
      source: { type: 'text' as const, media_type: 'text/plain' as const, data: 'body' },
      title: 'Report',
      context: 'from 2025',
    };
    const text = { type: 'text' as const, text: 'seen' };
    await ask([
      { role: 'user', content: [document, image] },
      { role: 'assistant', text: [], calls: [call('a'), call('b')] },
      { role: 'tool', callId: 'a', content: [text, image], isError: false },
      { role: 'tool', callId: 'b', content: [text], isError: true },
      { role: 'system', text: 'be brief' },
    ]);
    const { messages } = JSON.parse(asked) as { messages: object[] };
    expect(messages).toMatchObject([
      { role: 'user', content: [{ text: 'from 2025' }, { text: 'Report\n\nbody' }, imagePart] },
      { role: 'assistant', tool_calls: [{ id: 'a' }, { id: 'b' }] },
      { role: 'tool', tool_call_id: 'a', content: 'seen' },
      { role: 'tool', tool_call_id: 'b', content: 'Error: seen' },
      { role: 'user', content: [{ text: 'Part of the result of a:' }, imagePart] },
      { role: 'system', content: 'be brief' },
    ]);
  });
});

describe('an answer of the gateway', () => {
  it('is its text as it came, its calls put together, its usage and its cost', async () => {
    const call = (index: number, rest: object) => delta({ tool_calls: [{ index, ...rest }] });
    const usage = {
      prompt_tokens: 100,
      completion_tokens: 9,
      prompt_tokens_details: { cached_tokens: 60, cache_creation_tokens: 10 },
      cost: 0.5,
    };
    const reply = await streams([
      delta({ role: 'assistant', content: 'Hel' }),
      delta({ content: 'lo' }),
      call(0, { id: 'a', function: { name: 'bash', arguments: '' } }),
      call(0, { function: { arguments: '{"command":' } }),
      call(1, { id: 'b', function: { name: 'read', arguments: 'no JSON' } }),
      call(0, { function: { arguments: '"ls"}' } }),
      delta({}, 'tool_calls'),
      { choices: [], usage },
    ]);
    expect(said).toEqual(['Hel', 'lo']);
    expect(reply).toMatchObject({
      text: 'Hello',
      calls: [
        { name: 'bash', input: { command: 'ls' } },
        { name: 'read', input: null, rawInput: 'no JSON' },
      ],
      usage: { input_tokens: 30, output_tokens: 9, cache_read_input_tokens: 60, cache_creation_input_tokens: 10 },
      costUsd: 0.5,
      finishReason: 'tool_calls',
    });
  });

  it('that is cut or ends with an error is none, and is asked for again', async () => {
    const half = delta({ content: 'half' });
    await expect(streams([half], '')).rejects.toMatchObject({ retryable: true });
    const error = { message: 'litellm.APIConnectionError', type: null, param: null, code: '500' };
    await expect(streams([half, { error }], '')).rejects.toMatchObject({
      retryable: true,
      errorType: 'model_request_failed_error',
      message: expect.stringContaining('litellm.APIConnectionError'),
    });
  });
});

describe('a refusal of the gateway', () => {
  it.each([
    [400, 'model_request_failed_error', false],
    [401, 'model_request_failed_error', false],
    [402, 'billing_error', false],
    [429, 'model_rate_limited_error', true],
    [500, 'model_request_failed_error', true],
    [503, 'model_overloaded_error', true],
    [529, 'model_overloaded_error', true],
  ] as const)('with %i is a %s; retried: %s', async (status, errorType, retryable) => {
    const failure = { errorType, retryable, message: expect.stringContaining('why') };
    await expect(refuses(status, { message: 'why' })).rejects.toMatchObject(failure);
    await expect(refuses(status, 'why')).rejects.toMatchObject(failure);
  });

  it('for a budget of LiteLLM’s is a billing_error, whatever its status, and is not tried again', async () => {
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
    await expect(refuses(400, { message: 'no such parameter' })).rejects.toMatchObject({ contextExceeded: false });
  });
});
