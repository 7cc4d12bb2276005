import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { chatCompletions } from './chat-completions.ts';
import { messages } from './messages.ts';
import { ModelInfo } from './model-info.ts';

let server: Server;
let status = 200;
let asks = 0;
const entry = (name: string, model: string, info: object = {}) => ({
  model_name: name,
  litellm_params: { model },
  model_info: info,
});
const LISTED = [
  entry('claude', 'anthropic/claude-opus-5-5', { supports_reasoning: true, supports_adaptive_thinking: true }),
  entry('plain', 'anthropic/claude-old', { supports_reasoning: null }),
  entry('gpt', 'openai/gpt-9', { supports_reasoning: true }),
  entry('mixed', 'anthropic/claude-opus-5-5', { supports_reasoning: true }),
  entry('mixed', 'bedrock/claude-opus-5-5', { supports_reasoning: true }),
  entry('any/*', 'anthropic/*', { supports_reasoning: true }),
];
beforeAll(async () => {
  server = createServer((request, response) => {
    asks += 1;
    const found = request.url === '/v1/model/info' && request.headers.authorization === 'Bearer k';
    response.writeHead(found ? status : 404).end(JSON.stringify({ data: LISTED }));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
});
afterAll(() => {
  server.close();
});
const errors: unknown[] = [];
beforeEach(() => {
  [status, asks] = [200, 0];
  errors.length = 0;
});
const info = (messagesModels: string, apiKey = 'k'): ModelInfo =>
  new ModelInfo({
    baseUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    apiKey,
    messagesModels,
    onError: (error) => errors.push(error),
  });

describe('the dialect of a model', () => {
  it('is messages where every deployment is Anthropic’s, and thinking is asked for where all can', async () => {
    const auto = info('auto');
    const of = async (model: string) => auto.mannerOf(model);
    expect(await of('claude')).toEqual({ dialect: messages, reasons: true });
    expect(await of('any/model')).toEqual({ dialect: messages, reasons: true });
    expect(await of('plain')).toEqual({ dialect: messages, reasons: false });
    expect(await of('gpt')).toEqual({ dialect: chatCompletions, reasons: true });
    expect(await of('mixed')).toEqual({ dialect: chatCompletions, reasons: true });
    expect(await of('unknown')).toEqual({ dialect: chatCompletions, reasons: false });
    expect(asks).toBe(1);
  });

  it('is what the operator lists, by name or pattern, and nothing else then', async () => {
    const listed = info('gpt, bedrock/*claude*');
    expect((await listed.mannerOf('gpt')).dialect).toBe(messages);
    expect((await listed.mannerOf('bedrock/eu.claude-5')).dialect).toBe(messages);
    expect((await listed.mannerOf('bedrock/nova')).dialect).toBe(chatCompletions);
    expect((await listed.mannerOf('claude')).dialect).toBe(chatCompletions);
    expect((await info('').mannerOf('claude')).dialect).toBe(chatCompletions);
  });

  it('is chat completions at a gateway without the route, and at one that fails, which is told', async () => {
    expect((await info('auto', 'other').mannerOf('claude')).dialect).toBe(chatCompletions);
    expect(errors).toEqual([]);
    status = 500;
    const failing = info('auto');
    expect((await failing.mannerOf('claude')).dialect).toBe(chatCompletions);
    await failing.mannerOf('claude');
    expect(errors).toHaveLength(1);
  });
});
