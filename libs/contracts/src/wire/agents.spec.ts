import { describe, expect, it } from '@jest/globals';
import { resolveTools, type ToolParam, tools } from './agents.ts';

const toolset = (...configs: unknown[]): unknown => [{ type: 'agent_toolset_20260401', configs }];

describe('the tools of an agent', () => {
  it('are resolved to a form that can be sent back as it is', () => {
    const sent = tools.parse([
      ...(toolset(
        { name: 'bash', permission_policy: { type: 'always_ask' } },
        { name: 'web_fetch', type: 'web_fetch', allowed_domains: ['example.com'], url_sources: null },
      ) as ToolParam[]),
      { type: 'custom', name: 'lookup', description: '', input_schema: { type: 'object' } },
    ]);
    const resolved = resolveTools(sent);
    expect(resolved[0]).toMatchObject({
      configs: expect.arrayContaining([
        { type: 'bash', name: 'bash', enabled: true, permission_policy: { type: 'always_ask' } },
        {
          type: 'web_fetch',
          name: 'web_fetch',
          enabled: true,
          permission_policy: { type: 'always_allow' },
          allowed_domains: ['example.com'],
          url_sources: null,
        },
      ]),
    });
    expect(resolveTools(tools.parse(resolved))).toEqual(resolved);
  });

  it.each([
    ['another type than name', { name: 'bash', type: 'read' }, /type must be the same as name/],
    ['an empty list of domains', { name: 'web_fetch', allowed_domains: [] }, /is empty; leave it out instead/],
    ['what is not built yet', { name: 'web_fetch', url_sources: { type: 'all' } }, /url_sources is not supported yet/],
  ])('are refused with %s', (_what, config, message) => {
    expect(() => tools.parse(toolset(config))).toThrow(message);
  });
});
