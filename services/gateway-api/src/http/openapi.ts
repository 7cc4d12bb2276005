import { z } from 'zod';
import type { Operation } from '../operations/operation.ts';

/** The OpenAPI 3.1 document of the operations. Bodies come from the schemas that check them. */
export function openApiDocument(operations: readonly Operation[]): object {
  const paths: Record<string, Record<string, object>> = {};
  for (const one of operations) {
    const path = one.path.replace(/:(\w+)/g, '{$1}');
    const names = [...one.path.matchAll(/:(\w+)/g)].map((match) => match[1] ?? '');
    paths[path] = {
      ...paths[path],
      [one.method.toLowerCase()]: {
        operationId: one.id,
        summary: one.summary,
        ...(one.authenticated === false ? { security: [] } : {}),
        parameters: [
          ...names.map((name) => ({ name, in: 'path', required: true, schema: { type: 'string' } })),
          ...(one.query ?? []).map((name) => ({
            name,
            in: 'query',
            schema: name.endsWith('[]') ? { type: 'array', items: { type: 'string' } } : { type: 'string' },
          })),
        ],
        ...(one.body === undefined
          ? {}
          : {
              requestBody: {
                content: {
                  'application/json': {
                    schema: z.toJSONSchema(one.body, { io: 'input', unrepresentable: 'any', target: 'draft-2020-12' }),
                  },
                },
              },
            }),
        responses: {
          '200': {
            description: 'OK',
            content:
              one.streams === true
                ? { 'text/event-stream': { schema: { type: 'string' } } }
                : { 'application/json': {} },
          },
          default: {
            description: 'What went wrong',
            content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
          },
        },
      },
    };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Holdfast',
      version: '0.1.0',
      description: 'Sessions of AI agents as event logs. Wire-compatible with Claude Managed Agents.',
      license: { name: 'MIT', identifier: 'MIT' },
    },
    security: [{ apiKey: [] }, { bearer: [] }],
    paths,
    components: {
      securitySchemes: {
        apiKey: { type: 'apiKey', in: 'header', name: 'x-api-key' },
        bearer: { type: 'http', scheme: 'bearer' },
      },
      schemas: {
        Error: {
          type: 'object',
          required: ['type', 'request_id', 'error'],
          properties: {
            type: { const: 'error' },
            request_id: { type: 'string' },
            error: {
              type: 'object',
              required: ['type', 'message'],
              properties: {
                type: { type: 'string' },
                message: { type: 'string' },
                details: { type: 'object', properties: { error_code: { type: 'string' } } },
              },
            },
          },
        },
      },
    },
  };
}
