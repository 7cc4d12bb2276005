import { type AgentSnapshot, OUTPUTS_PATH, resolveTools } from '@holdfast/contracts';
import { expect, it } from '@jest/globals';
import { mcpToolName, offeredTools } from './tool-definitions.ts';

it('an MCP tool has a name that every provider takes, its own, and always the same', () => {
  expect(mcpToolName('tracker', 'find_tickets')).toBe('mcp__tracker__find_tickets');
  const pairs: [string, string][] = [
    ['tracker', 'find.tickets'],
    ['tracker', 'find_tickets'],
    ['tracker', 'find tickets'],
    ['x', 'y__z'],
    ['x__y', 'z'],
    ['ein Server, ü', 'tool'],
    ['s', 'a'.repeat(128)],
    ['s', `${'a'.repeat(127)}b`],
    ['s'.repeat(255), 'tool'],
  ];
  const names = pairs.map(([server, tool]) => mcpToolName(server, tool));
  expect(new Set(names).size).toBe(pairs.length);
  for (const name of names) expect(name).toMatch(/^mcp__[A-Za-z0-9_-]{1,59}$/);
  expect(pairs.map(([server, tool]) => mcpToolName(server, tool))).toEqual(names);
});

it('a model is told where to leave what the user gets, by the tools that make files, where the platform keeps it', () => {
  const agent = { tools: resolveTools([{ type: 'agent_toolset_20260401' }]) } as unknown as AgentSnapshot;
  const telling = (keepsOutputs: boolean) =>
    offeredTools(agent, new Map(), keepsOutputs)
      .filter(({ description }) => description.includes(OUTPUTS_PATH))
      .map(({ name }) => name);
  expect(telling(true)).toEqual(['bash', 'write']);
  expect(telling(false)).toEqual([]);
});
