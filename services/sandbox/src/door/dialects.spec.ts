import { describe, expect, it } from '@jest/globals';
import { allowed, DIALECTS, type Measured, named } from './dialects.ts';

const dialect = (path: string) => {
  const found = DIALECTS.find((one) => one.path === path);
  if (found === undefined) throw new Error(path);
  return found;
};
const chat = dialect('/v1/chat/completions');
const messages = dialect('/v1/messages');
const responses = dialect('/v1/responses');
function measured(path: string, parts: readonly object[]): Measured {
  const into: Measured = {
    usage: { input_tokens: 0, output_tokens: 0, cache_creation_input_tokens: 0, cache_read_input_tokens: 0 },
    costUsd: null,
    finishReason: null,
    tools: new Set(),
    failed: false,
    ended: false,
  };
  for (const part of parts) dialect(path).measure(part as Record<string, unknown>, into);
  return into;
}

describe('what a sandbox may say to a model', () => {
  it.each([
    'api_base',
    'base_url',
    'api_key',
    'metadata',
    'user',
    'extra_headers',
    'mcp_servers',
    'fallbacks',
    'cache',
  ])('has no %s, in any dialect', (field) => {
    for (const one of DIALECTS) expect(allowed(one, { model: 'm', [field]: 'x' })).not.toHaveProperty(field);
  });

  it('has the tools that a harness runs itself, and none that a gateway or provider would run', () => {
    const own = { type: 'function', function: { name: 'bash' } };
    const foreign = [{ type: 'mcp', server_url: 'http://x' }, { type: 'web_search' }, { type: 'code_interpreter' }];
    expect(allowed(chat, { tools: [own, ...foreign] })).toMatchObject({ tools: [own] });
    expect(allowed(responses, { tools: [...foreign, own] })).toMatchObject({ tools: [own] });
    expect(allowed(responses, { tools: foreign })).not.toHaveProperty('tools');
    const plain = { name: 'bash', input_schema: {} };
    const server = { type: 'web_search_20250305', name: 'web_search' };
    expect(allowed(messages, { tools: [plain, server] })).toMatchObject({ tools: [plain] });
  });

  it('asks for the usage of a stream, and for nothing to be kept', () => {
    expect(allowed(chat, { stream: true })).toMatchObject({ stream_options: { include_usage: true } });
    expect(allowed(chat, { stream: false })).not.toHaveProperty('stream_options');
    expect(allowed(responses, { store: true })).toMatchObject({ store: false });
  });
});

describe('what lies elsewhere', () => {
  const image = (url: string) => ({
    messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url } }] }],
  });
  it.each([
    ['url', image('https://evil.example/?d=secret')],
    ['url', image('http://169.254.169.254/latest')],
    ['url', { messages: [{ role: 'user', content: [{ type: 'image', source: { type: 'url', url: 'https://e' } }] }] }],
    [
      'file_id',
      { messages: [{ role: 'user', content: [{ type: 'document', source: { type: 'file', file_id: 'f' } }] }] },
    ],
    ['image_url', { input: [{ role: 'user', content: [{ type: 'input_image', image_url: 'https://e' }] }] }],
    ['file_url', { input: [{ role: 'user', content: [{ type: 'input_file', file_url: 'file:///etc' }] }] }],
    ['item_reference', { input: [{ type: 'item_reference', id: 'msg_1' }] }],
  ])('cannot be named by %s', (field, body) => {
    expect(named(body)).toBe(field);
  });

  it('may be spoken of, and what is inline is passed on', () => {
    expect(named(image('data:image/png;base64,AAAA'))).toBeNull();
    const called = {
      type: 'tool_use',
      id: 't',
      name: 'web_fetch',
      input: { url: 'https://e', source: { url: 'https://e' } },
    };
    expect(
      named({
        messages: [
          { role: 'assistant', content: [called] },
          { role: 'user', content: 'see https://e' },
        ],
      }),
    ).toBeNull();
    expect(
      named({ tools: [{ name: 'f', input_schema: { properties: { image_url: { type: 'string' } } } }] }),
    ).toBeNull();
  });
});

describe('what an answer says of itself', () => {
  it('in chat completions: cached tokens beside the input, calls by their ids, an end only where there is one', () => {
    const call = (id: string, index = 0) => ({
      choices: [{ delta: { tool_calls: [{ index, id, function: { name: 'bash', arguments: '' } }] } }],
    });
    const more = { choices: [{ delta: { tool_calls: [{ index: 0, function: { arguments: '{}' } }] } }] };
    const usage = {
      choices: [],
      usage: { prompt_tokens: 10, completion_tokens: 3, prompt_tokens_details: { cached_tokens: 4 }, cost: 0.5 },
    };
    expect(measured(chat.path, [call('a'), more]).ended).toBe(false);
    const all = measured(chat.path, [
      call('a'),
      more,
      call('b', 1),
      { choices: [{ finish_reason: 'tool_calls' }] },
      usage,
    ]);
    expect(all).toMatchObject({
      usage: { input_tokens: 6, output_tokens: 3, cache_read_input_tokens: 4 },
      costUsd: 0.5,
      finishReason: 'tool_calls',
      ended: true,
      failed: false,
    });
    expect([...all.tools]).toEqual(['a', 'b']);
    expect(measured(chat.path, [{ error: { message: 'broke' } }]).failed).toBe(true);
  });

  it('in messages: usage from the start and the end together', () => {
    const all = measured(messages.path, [
      { type: 'message_start', message: { usage: { input_tokens: 7, cache_read_input_tokens: 2, output_tokens: 1 } } },
      { type: 'content_block_start', content_block: { type: 'tool_use', id: 't1' } },
      { type: 'message_delta', delta: { stop_reason: 'tool_use' }, usage: { output_tokens: 9 } },
      { type: 'message_stop' },
    ]);
    expect(all).toMatchObject({
      usage: { input_tokens: 7, output_tokens: 9, cache_read_input_tokens: 2 },
      finishReason: 'tool_use',
      ended: true,
    });
    expect(all.tools.size).toBe(1);
    expect(measured(messages.path, [{ type: 'error', error: { type: 'overloaded_error' } }]).failed).toBe(true);
  });

  it('in responses: all of it in the event that completes them', () => {
    const response = {
      status: 'completed',
      usage: { input_tokens: 5, output_tokens: 2, input_tokens_details: { cached_tokens: 1 } },
      output: [{ type: 'reasoning' }, { type: 'function_call', call_id: 'c1' }, { type: 'message' }],
    };
    const all = measured(responses.path, [
      { type: 'response.created', response: { status: 'in_progress' } },
      { type: 'response.completed', response },
    ]);
    expect(all).toMatchObject({
      usage: { input_tokens: 4, output_tokens: 2, cache_read_input_tokens: 1 },
      ended: true,
      failed: false,
    });
    expect([...all.tools]).toEqual(['c1']);
    expect(measured(responses.path, [{ type: 'response.failed', response: { status: 'failed' } }]).failed).toBe(true);
  });
});
