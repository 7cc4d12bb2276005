import { describe, expect, it } from '@jest/globals';
import { mcpFault, mcpServers, resolveTools, type ToolParam, tools } from './agents.ts';

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

describe('the MCP servers of an agent', () => {
  const set = (name: string, rest: object = {}) => ({ type: 'mcp_toolset', mcp_server_name: name, ...rest });
  const server = (name: string, url = 'https://mcp.example.com/') => ({ type: 'url', name, url });

  it('ask before each call unless they are told otherwise, and resolve to what can be sent back', () => {
    const configs = [
      { name: 'find', permission_policy: { type: 'always_allow' } },
      { name: 'drop', enabled: false },
    ];
    const resolved = resolveTools(tools.parse([set('tracker', { configs }), set('wiki')]));
    const asks = { type: 'always_ask' };
    expect(resolved).toEqual([
      {
        ...set('tracker'),
        default_config: { enabled: true, permission_policy: asks },
        configs: [
          { name: 'find', enabled: true, permission_policy: { type: 'always_allow' } },
          { name: 'drop', enabled: false, permission_policy: asks },
        ],
      },
      { ...set('wiki'), default_config: { enabled: true, permission_policy: asks }, configs: [] },
    ]);
    expect(resolveTools(tools.parse(resolved))).toEqual(resolved);
  });

  it('go with exactly one toolset each', () => {
    expect(mcpFault([set('a'), set('b')], [server('a'), server('b')])).toBeUndefined();
    expect(mcpFault([set('a')], [])).toContain('no MCP server of the agent is named "a"');
    expect(mcpFault([], [server('a')])).toContain('"a" is used by no mcp_toolset');
    expect(mcpFault([set('a'), set('a')], [server('a')])).toContain('"a" has two toolsets');
  });

  it.each([
    ['a name twice', [server('a'), server('a')], /names a server twice/],
    [
      'credentials in the URL',
      [server('a', 'https://me:secret@example.com/')],
      /come from vaults, which are not supported/,
    ],
    ['another scheme', [server('a', 'stdio:server')], /URL/],
    ['what only vaults will give', [{ ...server('a'), authorization_token: 't' }], /authorization_token/],
    ['more than twenty', Array.from({ length: 21 }, (_, i) => server(`s${i}`)), /20/],
  ])('are refused with %s', (_what, servers, message) => {
    expect(() => mcpServers.parse(servers)).toThrow(message);
  });

  it('keep the names of their tools to themselves', () => {
    const custom = { type: 'custom', name: 'mcp__a__b', description: '', input_schema: { type: 'object' } };
    expect(() => tools.parse([set('a'), custom])).toThrow(/names that begin with mcp__ are those of MCP tools/);
    expect(() => tools.parse([custom])).not.toThrow();
  });
});
