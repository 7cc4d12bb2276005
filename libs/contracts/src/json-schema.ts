import { z } from 'zod';
import type { JsonObject, JsonValue } from './json.ts';

export const jsonValue: z.ZodType<JsonValue> = z.json() as z.ZodType<JsonValue>;
export const jsonObject: z.ZodType<JsonObject> = z.record(z.string(), jsonValue) as unknown as z.ZodType<JsonObject>;
