import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { startDemoGateway } from './server.ts';

let server: Server;
beforeAll(async () => {
  server = await startDemoGateway(0);
});
afterAll(() => {
  server.close();
});

function post(path: string, messages: unknown[], more: object = {}): Promise<Response> {
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}${path}`;
  return fetch(url, { method: 'POST', body: JSON.stringify({ model: 'demo', messages, ...more }) });
}
async function answerTo(messages: unknown[]): Promise<string> {
  return (await post('/v1/messages', messages)).text();
}
const text = (said: string) => ({ type: 'text', text: said });

describe('the demo gateway', () => {
  it('follows the newest text where a gateway between has merged several messages into one', async () => {
    const failed = await answerTo([{ role: 'user', content: [text('ERR[500]'), text('and now?')] }]);
    expect(failed).toContain('You said: and now?');
    const interrupted = await answerTo([
      { role: 'user', content: 'RUN[sleep 9]' },
      { role: 'assistant', content: [{ type: 'tool_use', id: 'a', name: 'bash', input: {} }] },
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'a', content: 'cut' }, text('never mind')] },
    ]);
    expect(interrupted).toContain('You said: never mind');
  });

  it('goes on after a tool’s result', async () => {
    const done = await answerTo([
      { role: 'user', content: 'RUN[ls]' },
      { role: 'assistant', content: [{ type: 'tool_use', id: 'a', name: 'bash', input: {} }] },
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'a', content: [text('a.txt')] }] },
    ]);
    expect(done).toContain('The last result was:\\na.txt');
  });

  it('calls the shell by the name that it is offered under', async () => {
    const calls = async (...names: string[]): Promise<unknown> => {
      const tools = names.map((name) => ({ type: 'function', function: { name } }));
      const answer = await post('/v1/chat/completions', [{ role: 'user', content: 'RUN[ls]' }], { tools });
      const { choices } = (await answer.json()) as { choices: { message: { tool_calls: { function: object }[] } }[] };
      return choices[0]?.message.tool_calls[0]?.function;
    };
    expect(await calls('exec_command')).toEqual({ name: 'exec_command', arguments: '{"cmd":"ls"}' });
    expect(await calls('exec_command', 'bash')).toEqual({ name: 'bash', arguments: '{"command":"ls"}' });
  });

  it('speaks responses, whole and streamed', async () => {
    const input = [
      { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'SLOW[2]RUN[ls]' }] },
      { type: 'message', role: 'assistant', content: [{ type: 'output_text', text: 'word1 word2' }] },
      { type: 'function_call', call_id: 'a', name: 'bash', arguments: '{}' },
      { type: 'function_call_output', call_id: 'a', output: 'a.txt' },
    ];
    const first = (await (await post('/v1/responses', [], { input: input.slice(0, 1) })).json()) as object;
    expect(first).toMatchObject({
      object: 'response',
      status: 'completed',
      output: [
        { type: 'message', content: [{ type: 'output_text', text: 'word1 word2' }] },
        { type: 'function_call', name: 'bash', arguments: '{"command":"ls"}' },
      ],
      usage: { output_tokens: 23 },
    });
    const streamed = await (await post('/v1/responses', [], { input, stream: true })).text();
    expect(streamed.match(/^event: .*/gm)).toEqual([
      'event: response.created',
      'event: response.output_item.added',
      'event: response.output_text.delta',
      'event: response.output_item.done',
      'event: response.completed',
    ]);
    expect(streamed).toContain('"delta":"Done. The last result was:\\na.txt"');
  });

  it('fails in the shape of the route', async () => {
    const failing = [{ role: 'user', content: 'ERR[429]' }];
    const error = { type: 'api_error', message: expect.stringContaining('429') };
    for (const [path, body] of [
      ['/v1/messages', { type: 'error', error }],
      ['/v1/chat/completions', { error }],
    ] as const) {
      const answer = await post(path, failing);
      expect(answer.status).toBe(429);
      expect(await answer.json()).toEqual(body);
    }
  });
});
